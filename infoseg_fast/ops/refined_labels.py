"""`refined_labels`: labels of pixels, by Bayes' rule."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch
from .factory import Wiring
from .inputs import DATA_SETS, DOUBLE, FLOAT, normal
from .record import Case, Op


@torch.no_grad()
def refined_labels(
    prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor, *, backend: str = "auto"
) -> Tensor:
    """argmax_k [log prior_k + log p(y | s, k)] of every pixel.

    Args:
        prior: [B, K, h, w], probabilities of the positions. They are upsampled bilinearly
            (align_corners=False).
        colour: y, [B, c, H, W], colours of the pixels.
        around: s, [B, c, h, w], colours around the positions, upsampled as the prior.
        residual, log_scale: [K, c, 2c + 1] and [K], the density of each class:
            log p(y | s, k) = log_scale - 1/2 |residual (y, s, 1)|^2 + const.
        backend: "auto", "reference", "cpp" (only float32) or "triton" (float32 and float64).

    Returns:
        Labels [B, H, W] uint8. A tie gives the lowest class. A NaN gives some label below K.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ.
        ValueError: the shapes do not fit each other, or the devices differ.
        BackendUnavailableError: the backend that is named cannot run here.
    """
    checks.floating("prior", prior, "B, K, h, w")
    checks.floating("colour", colour, "B, c, H, W", like=prior)
    (B, K, h, w), c = prior.shape, colour.shape[1]
    checks.floating("colour", colour, "B, c, H, W", (B, c, *colour.shape[2:]))
    checks.floating("around", around, "B, c, h, w", (B, c, h, w), prior)
    checks.floating("residual", residual, "K, c, 2c + 1", (K, c, 2 * c + 1), prior)
    checks.floating("log_scale", log_scale, "K", (K,), prior)
    backend = dispatch.select("refined_labels", backend, prior)
    if backend == "reference" or prior.numel() == 0:
        return reference.refined_labels(prior, colour, around, residual, log_scale)
    return WIRING(backend, prior, colour, around, residual, log_scale)


def _shapes(case: Case) -> list[tuple[int, ...]]:
    B, K, c = case.B, case.K, case.C
    return [(B, K, case.h, case.w), (B, c, *case.size), (B, c, case.h, case.w), (K, c, 2 * c + 1), (K,)]


def refinement_arguments(
    case: Case, device: torch.device | str, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Any]]:
    """Random prior, colour, around, residual and log_scale. C of the case is the number of colours."""
    prior, *others = normal(case, 6, *_shapes(case))
    return [x.to(device, dtype) for x in (torch.softmax(2 * prior, dim=1), *others)], {}


def refinement_kernel_arguments(case: Case, device: torch.device | str) -> tuple[Tensor, ...]:
    """The arguments, uninitialised."""
    return tuple(torch.empty(shape, dtype=case.dtype, device=device) for shape in _shapes(case))


def refinement_operations(case: Case, phase: str) -> int:
    """Floating-point operations of c residuals of 2c numbers, and of their squares, for every pixel
    and class.
    """
    return 2 * case.pixels * case.K * case.C * (2 * case.C + 1)


WIRING = Wiring(
    "refined_labels",
    "Tensor prior, Tensor colour, Tensor around, Tensor residual, Tensor log_scale",
    lambda prior, colour, *_: prior.new_empty(prior.shape[0], *colour.shape[2:], dtype=torch.uint8),
)
OP = Op(
    name="refined_labels",
    function=refined_labels,
    reference=reference.refined_labels,
    arguments=refinement_arguments,
    floor=lambda case, phase: (
        case.feature_bytes + case.score_bytes + case.C * case.pixels * case.dtype.itemsize + case.pixels
    ),
    operations=refinement_operations,
    wiring=WIRING,
    kernel_arguments=refinement_kernel_arguments,
    cases=(
        Case("refined labels 128x128", uses=("cpu",), B=16, C=3, speedup=1.8),
        Case("refined labels 128x128", uses=("cuda",), C=3),
        *(Case("refined labels", uses=("aot",), C=3, dtype=dtype) for dtype in (FLOAT, DOUBLE)),
        *(Case(f"{c} colours", uses=("aot_more",), C=c) for c in (1, 4, 16)),
        Case("ragged", uses=("aot_more",), C=3, size=(33, 39)),
        Case("16 colours, float64", uses=("aot_more",), C=16, dtype=DOUBLE),
        *(Case(name, uses=("roofline",), C=3, **sizes) for name, sizes in DATA_SETS.items()),
    ),
)
