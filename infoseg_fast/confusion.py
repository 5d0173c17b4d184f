"""Joint counts of predicted clusters and target classes."""

import numpy as np
import torch
from torch import Tensor

from . import extension, reference

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_counts_arguments(labels: Tensor, name: str, number: int, number_name: str) -> None:
    """Raise unless `labels` has an integer dtype and `number` is a positive number of values."""
    if labels.dtype not in INTEGERS:
        raise TypeError(f"{name} must have an integer dtype, not {str(labels.dtype).removeprefix('torch.')}")
    if not isinstance(number, (int, np.integer)) or number < 1:
        raise ValueError(f"{number_name} must be a whole number of at least 1, not {number!r}")


def confusion_matrix(
    pred: Tensor | np.ndarray,
    target: Tensor | np.ndarray,
    num_clusters: int,
    num_classes: int,
    ignore_index: int | None = 255,
) -> Tensor | np.ndarray:
    """Count the positions of every pair of predicted cluster and target class.

    Args:
        pred: clusters 0 .. num_clusters - 1, any shape, integer dtype; tensor or numpy array.
        target: classes 0 .. num_classes - 1 of the same shape, integer dtype.
        num_clusters, num_classes: rows and columns of the result.
        ignore_index: positions with this target are left out, whatever `pred` is there; None leaves out none.

    Returns:
        int64 [num_clusters, num_classes]: a numpy array when both are, else a tensor on their device.

    Raises:
        TypeError: a dtype is not an integer one. ValueError: shapes differ, or a value is out of range (the text says
        which value, and its flat index).
    """
    numpy = isinstance(pred, np.ndarray) and isinstance(target, np.ndarray)
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    checked_counts_arguments(pred, "pred", num_clusters, "num_clusters")
    checked_counts_arguments(target, "target", num_classes, "num_classes")
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have one shape, not {list(pred.shape)} and {list(target.shape)}")
    if pred.device != target.device:
        raise ValueError(f"pred and target must be on one device, not {pred.device} and {target.device}")
    module = extension.compiled()
    if module is not None and pred.device.type == "cpu" and pred.dtype == target.dtype == torch.uint8:
        counts = torch.from_numpy(
            module.confusion_matrix(pred.numpy(), target.numpy(), num_clusters, num_classes, ignore_index)
        )
    else:
        counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
        for name, labels, number in (("target", target, num_classes), ("pred", pred, num_clusters)):
            _check_range(name, labels, number, counted)
        counts = reference.confusion_counts(
            torch.where(counted, pred, 0), target, num_clusters, num_classes, ignore_index
        )
    return counts.numpy() if numpy else counts


def _check_range(name: str, labels: Tensor, number: int, counted: Tensor) -> None:
    bad = (counted & ((labels < 0) | (labels >= number))).flatten()
    if bad.any():
        place = int(bad.to(torch.uint8).argmax())
        raise ValueError(
            f"{name} holds {int(labels.flatten()[place])} at flat index {place}; values below {number} are accepted"
        )
