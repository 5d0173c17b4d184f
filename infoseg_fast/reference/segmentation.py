"""Label maps at image resolution, and their counts against ground truth."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .similarity import fold_projection, folded_similarity


def segment(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    size: tuple[int, int] | None = None,
    interpolate: str = "probs",
) -> Tensor:
    """argmax_k of V (or z) upsampled bilinearly (align_corners=False) -> [B, *size] uint8."""
    G, g0 = fold_projection(global_features, weight, bias)
    size = tuple(features.shape[2:]) if size is None else size
    return folded_segment(features, G, g0, temperature=temperature, size=size, interpolate=interpolate)


def folded_segment(
    features: Tensor, G: Tensor, g0: Tensor | None, *, temperature: float, size: tuple[int, int], interpolate: str
) -> Tensor:
    """The label maps from folded global features.

    The argmax of upsampled probabilities is not the upsampled argmax. One image at a time, so that the upsampled
    volume stays at K * size numbers.
    """
    labels = torch.empty(len(features), *size, dtype=torch.uint8, device=features.device)
    for b in range(len(features)):
        volume = folded_similarity(features[b : b + 1], G[b : b + 1], None if g0 is None else g0[b : b + 1])
        if interpolate == "probs":
            volume = torch.softmax(temperature * volume, dim=1)
        if volume.shape[2:] != size:
            volume = F.interpolate(volume, size=size, mode="bilinear", align_corners=False)
        labels[b] = volume[0].argmax(dim=0)
    return labels


def confusion_counts(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> Tensor:
    """int64 [num_clusters, num_classes] joint counts over equally shaped integer tensors, all values in range."""
    cell = pred.flatten().long() * num_classes + target.flatten().long()
    if ignore_index is not None:
        # One bin more takes what is left out: no boolean indexing, so no wait for the device.
        cell = torch.where(target.flatten() == ignore_index, num_clusters * num_classes, cell)
    counts = torch.bincount(cell, minlength=num_clusters * num_classes + 1)
    return counts[:-1].view(num_clusters, num_classes)


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
) -> tuple[Tensor, Tensor]:
    """The counts int64 [K, num_classes] of the segmentation at the target's size, and the label maps."""
    labels = segment(
        features,
        global_features,
        weight,
        bias,
        temperature=temperature,
        size=tuple(target.shape[1:]),
        interpolate=interpolate,
    )
    return confusion_counts(labels, target, global_features.shape[1], num_classes, ignore_index), labels
