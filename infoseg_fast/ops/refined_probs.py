"""`refined_probs`: class probabilities of positions from their pixels, by Bayes' rule."""

import torch
from torch import Tensor

from .. import reference
from . import dispatch
from .factory import Wiring
from .inputs import DATA_SETS, DOUBLE, FLOAT
from .record import Case, Op
from .refined_labels import refinement_arguments, refinement_kernel_arguments, refinement_operations

MAX_PIXELS = 64  # pixels of a position, that a kernel averages over


@torch.no_grad()
def refined_probs(
    prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor, *, backend: str = "auto"
) -> Tensor:
    """p(k | y, s) of the pixels of every position, averaged over them.

    Args:
        prior, colour, around, residual, log_scale: as in `refined_labels`.
        backend: "auto", "reference", "cpp", which takes float32, or "triton", which takes float32
            and float64; the last two take positions of whole pixels, at most MAX_PIXELS.

    Returns:
        [B, K, h, w] in the dtype of the prior; the sum over k is 1.

    Raises:
        ValueError: the backend asked for by name does not take positions of this size.
        BackendUnavailableError: the backend asked for by name cannot run here.
    """
    positions, pixels = prior.shape[2:], colour.shape[2:]
    whole = all(n > 0 and m % n == 0 for n, m in zip(positions, pixels, strict=True))
    whole = whole and pixels.numel() <= MAX_PIXELS * positions.numel()
    if not whole and backend not in ("auto", "reference"):
        raise ValueError(
            f"backend {backend!r} takes positions of whole pixels, at most {MAX_PIXELS}, not {list(positions)} of "
            f"{list(pixels)}"
        )
    backend = dispatch.select("refined_probs", backend if whole else "reference", prior)
    if backend == "reference" or prior.numel() == 0:
        return reference.refined_probs(prior, colour, around, residual, log_scale)
    return WIRING(backend, prior, colour, around, residual, log_scale)


WIRING = Wiring(
    "refined_probs",
    "Tensor prior, Tensor colour, Tensor around, Tensor residual, Tensor log_scale",
    lambda prior, *_: torch.empty_like(prior, memory_format=torch.contiguous_format),
)
OP = Op(
    name="refined_probs",
    function=refined_probs,
    reference=reference.refined_probs,
    arguments=refinement_arguments,
    floor=lambda case, phase: case.feature_bytes + 2 * case.score_bytes + case.C * case.pixels * case.dtype.itemsize,
    operations=refinement_operations,
    wiring=WIRING,
    kernel_arguments=refinement_kernel_arguments,
    cases=(
        Case("refined probs 128x128", uses=("cpu",), B=16, C=3, speedup=1.8),
        Case("refined probs 128x128", uses=("cuda",), C=3),
        *(Case("refined probs", uses=("aot",), C=3, dtype=dtype) for dtype in (FLOAT, DOUBLE)),
        *(Case(f"{c} colours", uses=("aot_more",), C=c) for c in (1, 4, 16)),
        Case("positions of 3 x 5", uses=("aot_more",), C=3, size=(96, 160)),
        Case("16 colours, float64", uses=("aot_more",), C=16, dtype=DOUBLE),
        *(Case(name, uses=("roofline",), C=3, **sizes) for name, sizes in DATA_SETS.items()),
    ),
)
