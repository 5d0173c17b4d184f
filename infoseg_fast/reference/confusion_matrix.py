"""Counts of pairs of labels of two maps."""

import torch
from torch import Tensor


def confusion_matrix(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None = 255
) -> Tensor:
    """Number of positions with every pair of values, int64 [num_clusters, num_classes]. Positions
    with target `ignore_index` or a value out of range do not count.
    """
    return counts_and_outside(pred, target, num_clusters, num_classes, ignore_index)[0]


def counts_and_outside(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """The counts, and the number of positions out of range that are not ignored, int64 [].

    Every position falls into a bin, so that the host never waits for the device (as with
    `torch.bincount`).
    """
    pred, target = pred.flatten().long(), target.flatten().long()
    cells = num_clusters * num_classes
    inside = (pred >= 0) & (pred < num_clusters) & (target >= 0) & (target < num_classes)
    cell = torch.where(inside, pred * num_classes + target, cells)
    if ignore_index is not None:
        cell = torch.where(target == ignore_index, cells + 1, cell)
    bins = torch.zeros(cells + 2, dtype=torch.int64, device=pred.device)
    bins = bins.scatter_add(0, cell, torch.ones_like(cell))
    return bins[:cells].view(num_clusters, num_classes), bins[cells]


def raise_out_of_range(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> None:
    """Raise ValueError for the first value out of range, with the text of the extension."""
    counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    bad_target = counted & ((target < 0) | (target >= num_classes))
    bad = (bad_target | (counted & ((pred < 0) | (pred >= num_clusters)))).flatten()
    place = int(bad.to(torch.uint8).argmax())
    in_target = bool(bad_target.flatten()[place])
    name, labels, number = ("target", target, num_classes) if in_target else ("pred", pred, num_clusters)
    raise ValueError(
        f"{name} holds {int(labels.flatten()[place])} at flat index {place}; 0 to {number - 1} are accepted"
    )
