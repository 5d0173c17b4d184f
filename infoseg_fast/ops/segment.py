"""`segment`: label maps at the resolution of images."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import checks, dispatch, inputs
from .factory import Wiring
from .record import Case, Op

INTERPOLATIONS = ("probs", "logits")


@torch.no_grad()
def segment(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    size: tuple[int, int] | None = None,
    interpolate: str = "probs",
    backend: str = "auto",
) -> Tensor:
    """The class of every pixel: argmax_k of the bilinearly upsampled probabilities or similarities.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0, a factor of z.
        size: (rows, columns) of the label maps, pixels. None: h x w.
        interpolate: "probs" upsamples V = softmax_k(tau z) (align_corners=False), "logits"
            upsamples z. Both differ from upsampling the labels.

    Returns:
        Labels 0 .. K - 1, [B, *size] uint8. A tie gives the lowest class. A NaN gives some label
        below K. Not differentiable.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `assign`, or the size is below 1 x 1
            or `interpolate` is unknown (ValueError).
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    checks.one_of("interpolate", interpolate, INTERPOLATIONS)
    pixels = checks.image_size("size", size, features)
    backend = dispatch.select("segment", backend, features)
    if backend == "reference":
        with checks.without_autocast(features):
            return reference.segment(
                features, global_features, weight, bias, temperature=temperature, size=size, interpolate=interpolate
            )
    return WIRING(backend, features, global_features, weight, bias, temperature, pixels, interpolate)


def _fake(
    features: Tensor, G: Tensor, g0: Tensor | None, temperature: float, size: tuple[int, int], interpolate: str
) -> Tensor:
    return features.new_empty(features.shape[0], *size, dtype=torch.uint8)


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    return *inputs.folded_arguments(case, device), 1.0, case.size, case.settings.get("interpolate", "probs")


WIRING = Wiring("segment", f"{inputs.FOLDED}, float temperature, SymInt[] size, str interpolate", _fake, folds=True)
OP = Op(
    name="segment",
    function=segment,
    reference=reference.segment,
    arguments=lambda case, device, dtype: (
        inputs.feature_arguments(case, device, dtype),
        {"size": case.size} | case.settings,
    ),
    floor=lambda case, phase: case.feature_bytes + case.pixels,
    operations=inputs.similarity_operations,
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("segment to 128x128", **inputs.CPU | {"C": 64, "D": 256, "speedup": 8.0}),
        Case("segment to 128x128", **inputs.CUDA),
        Case("segment bfloat16 to 128x128", dtype=inputs.BFLOAT, **inputs.CUDA),
        Case("segment", K=27, size=(32, 32), **inputs.AOT),
        *inputs.roofline_cases(),
    ),
)
