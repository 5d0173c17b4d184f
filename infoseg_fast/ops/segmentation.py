"""`segment` and `segment_and_count`."""

import torch
from torch import Tensor

from .. import reference
from . import checks, custom, eager
from .confusion_matrix import add_confusion, as_labels, raise_out_of_range
from .dispatch import choose, choose_fused_count, kernel

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
    """The class of every pixel: argmax_k of the probabilities (or similarities), upsampled bilinearly to `size`.

    Args:
        features, global_features, weight, bias, backend: as in `local_global_similarity`.
        temperature: tau > 0; it multiplies.
        size: (rows, columns) of the label maps in pixels; None for h x w.
        interpolate: "probs" upsamples V = softmax_k(tau z) (align_corners=False), "logits" upsamples z. Both differ
            from upsampling the labels.

    Returns:
        Labels 0 .. K - 1, [B, *size] uint8; of equal classes the lowest. A NaN gives some label below K. Not
        differentiable.

    Raises:
        As `local_global_similarity`; ValueError also for a size below 1 x 1.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    checks.one_of("interpolate", interpolate, INTERPOLATIONS)
    size = checks.image_size("size", size, features)
    backend = choose("segment", backend, features.device.type, features.dtype)
    with checks.without_autocast(features.device.type):
        G, g0 = reference.fold_projection(global_features, weight, bias)
        if backend == "reference":
            return reference.folded_segment(
                features, G, g0, temperature=temperature, size=size, interpolate=interpolate
            )
        if eager.takes(features, G, g0):
            return kernel("segment", backend).forward(features, G, g0, temperature, size, interpolate)
        return custom.segment(features, G, g0, temperature, *size, interpolate, backend)


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
    """Joint counts of the segmentation at the target's size and the target: what an evaluation sums up.

    Args:
        features, global_features, weight, bias, temperature, interpolate, backend: as in `segment`.
        target: ground truth, [B, H_img, W_img] uint8 (or another integer dtype).
        num_classes: classes of the target.
        ignore_index: target value that is left out of the counts; None counts all.
        return_labels: return the label maps too.
        return_outside: return too how many pixels have a target out of range, for `ClusterMetrics.add`.
        check: on CUDA, raise for a target out of range. That waits for the GPU; without it such pixels are left out of
            the counts.

    Returns:
        int64 [K, num_classes], rows = predicted clusters. With `return_labels` or `return_outside` a tuple of it and,
        in this order, the labels [B, H_img, W_img] uint8 and the number of pixels out of range, int64 [].

    Raises:
        As `segment`; ValueError also for a target value from num_classes on that is not `ignore_index` (on CUDA only
        with `check`).
    """
    if not isinstance(target, Tensor) or target.dim() != 3 or len(target) != len(features):
        raise ValueError(f"target must be [B, H_img, W_img] with B = {len(features)}, not {checks.described(target)}")
    target = as_labels(target, "target", num_classes, "num_classes")
    # Bytes against bytes are counted row by row as they are segmented, and no label map is formed.
    fused = target.dtype == torch.uint8 and target.device == features.device
    fused = choose_fused_count(backend, features.device.type, features.dtype) if fused else None
    if fused:
        features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
        temperature = checks.real("temperature", temperature, positive=True)
        checks.one_of("interpolate", interpolate, INTERPOLATIONS)
        checks.image_size("target", tuple(target.shape[1:]), features)
        with checks.without_autocast(features.device.type):
            G, g0 = reference.fold_projection(global_features, weight, bias)
            counts, outside, labels = custom.segment_and_count(
                features, G, g0, target, temperature, interpolate, num_classes, ignore_index, return_labels, fused
            )
    else:
        labels = segment(
            features,
            global_features,
            weight,
            bias,
            temperature=temperature,
            size=tuple(target.shape[1:]),
            interpolate=interpolate,
            backend=backend,
        )
        counts = torch.zeros(global_features.shape[1], num_classes, dtype=torch.int64, device=target.device)
        outside = add_confusion(counts, labels, target, ignore_index)
        outside = counts.new_zeros(()) if outside is None else outside
    if check and target.is_cuda and outside:
        raise_out_of_range(torch.zeros_like(target), target, *counts.shape, ignore_index)
    chosen = (counts, *([labels] if return_labels else []), *([outside] if return_outside else []))
    return chosen if len(chosen) > 1 else counts
