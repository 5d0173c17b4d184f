"""`segment_and_count`: the confusion matrix of label maps and ground truth, in one pass."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.confusion_matrix import raise_out_of_range
from . import checks, dispatch, inputs
from .confusion_matrix import as_labels, check_ignored, count_pairs
from .factory import Wiring
from .record import Case, Op
from .segment import INTERPOLATIONS, segment


@torch.no_grad()
def segment_and_count(
    features: Tensor,
    global_features: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_classes: int,
    temperature: float = 1.0,
    interpolate: str = "probs",
    ignore_index: int | None = 255,
    return_labels: bool = False,
    return_outside: bool = False,
    check: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """The confusion matrix of the segmentation at the size of the target, and the target.

    Args:
        features, global_features, weight, bias, temperature, interpolate, backend: as in `segment`.
        target: ground truth, [B, H_img, W_img] uint8 or another integer dtype.
        num_classes: number of classes of the target.
        ignore_index: target value that does not count. None: all values count.
        return_labels: whether to return the label maps too.
        return_outside: whether to return the number of pixels with a target out of range too, for
            `ClusterMetrics.add`.
        check: whether to raise for a target out of range on CUDA, which waits for the GPU.
            Otherwise such pixels do not count.

    Returns:
        int64 [K, num_classes], with a row for each cluster. With `return_labels` or
        `return_outside` a tuple with, in this order, the labels [B, H_img, W_img] uint8 and the
        number of pixels out of range, int64 [].

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `segment`, or the target has another
            shape or device, or a value that is neither a class nor `ignore_index` (on CUDA only
            with `check`), or `ignore_index` is no whole number (TypeError).
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a tensor, not {checks.described(features)}")
    if (
        not isinstance(target, Tensor)
        or target.dim() != 3
        or target.shape[0] != features.shape[0]
        or target.device != features.device
    ):
        raise ValueError(
            f"target must be a tensor [B, H_img, W_img] with B = {features.shape[0]} on {features.device} as features, "
            f"not {checks.described(target)}"
        )
    check_ignored(ignore_index)
    target = as_labels(target, "target", num_classes, "num_classes")
    # For uint8 targets the rows are counted while they are segmented, without a label map.
    fused = _fused_backend(backend, features, target)
    if fused:
        features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
        temperature = checks.real("temperature", temperature, positive=True)
        checks.one_of("interpolate", interpolate, INTERPOLATIONS)
        checks.image_size("target", tuple(target.shape[1:]), features)
        tensors = features, global_features, weight, bias, target.contiguous()
        how = temperature, interpolate, num_classes, ignore_index, return_labels
        counts, outside, labels = WIRING(fused, *tensors, *how)
    else:
        labels = segment(
            features, global_features, weight, bias, temperature=temperature,
            size=(target.shape[1], target.shape[2]), interpolate=interpolate, backend=backend,
        )  # fmt: skip
        counts, found = count_pairs(labels, target, global_features.shape[1], num_classes, ignore_index)
        outside = counts.new_zeros(()) if found is None else found
    if check and target.is_cuda and outside:
        raise_out_of_range(torch.zeros_like(target), target, counts.shape[0], counts.shape[1], ignore_index)
    chosen = (counts, *([labels] if return_labels else []), *([outside] if return_outside else []))
    return chosen if len(chosen) > 1 else counts


def _fused_backend(backend: str, features: Tensor, target: Tensor) -> str | None:
    """The backend of `segment` if it counts while it segments, else None."""
    if target.dtype != torch.uint8 or target.device != features.device:
        return None
    chosen = dispatch.select("segment", backend, features)
    return dispatch.fused_count(chosen, features.device.type, features.dtype)


def _fake(
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    target: Tensor,
    temperature: float,
    interpolate: str,
    num_classes: int,
    ignore_index: int | None,
    labels_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.empty_like(target) if labels_wanted else target.new_empty(0)
    counts = features.new_empty(G.shape[1], num_classes, dtype=torch.int64)
    return counts, counts.new_empty(()), labels


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    features, global_features, weight, bias = inputs.feature_arguments(case, device, dtype)
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, case.settings["num_classes"], (case.B, *case.size), generator=generator)
    return [features, global_features, target.to(device, torch.uint8), weight, bias], dict(case.settings)


def _kernel_arguments(case: Case, device: torch.device) -> tuple[Any, ...]:
    how = case.settings
    target = torch.empty(case.B, *case.size, dtype=torch.uint8, device=device)
    labels_wanted = how.get("return_labels", False)
    interpolate = how.get("interpolate", "probs")
    return *inputs.folded_arguments(case, device), target, 1.0, interpolate, how["num_classes"], 255, labels_wanted


WIRING = Wiring(
    "segment_and_count",
    f"{inputs.FOLDED}, Tensor target, float temperature, str interpolate, int num_classes, int? ignore_index, "
    "bool labels_wanted",
    _fake,
    folds=True,
    result="(Tensor, Tensor, Tensor)",
)
CLASSES: dict[str, Any] = {"settings": {"num_classes": 27}}
OP = Op(
    name="segment_and_count",
    function=segment_and_count,
    reference=reference.segment_and_count,
    arguments=_arguments,
    floor=lambda case, phase: case.feature_bytes + case.pixels,
    operations=inputs.similarity_operations,
    wiring=WIRING,
    kernel_arguments=_kernel_arguments,
    cases=(
        Case("segment and count 128x128", **inputs.CPU | {"C": 64, "D": 256}, **CLASSES),
        Case("segment and count 128x128", **inputs.CUDA, **CLASSES),
        Case("segment and count", K=27, **inputs.AOT, **CLASSES),
        Case("segment and count, float64", K=27, dtype=inputs.DOUBLE, **inputs.AOT, **CLASSES),
        Case("many bins", K=256, settings={"num_classes": 256}, **inputs.AOT_MORE),
        *inputs.roofline_cases(**CLASSES),
    ),
)
