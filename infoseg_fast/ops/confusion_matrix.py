"""Joint counts of predicted clusters and target classes."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .. import cuda_library, extension

# The dtypes that the kernels read; the values are their numbers in csrc/confusion_matrix.cu.
KERNEL_DTYPES = {torch.uint8: 0, torch.int16: 1, torch.int32: 2, torch.int64: 3}
# The kernel dtype that holds every value of another dtype (uint64: every value up to 2^63 - 1).
WIDER = {
    torch.bool: torch.uint8,
    torch.int8: torch.int16,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def as_labels(labels: ArrayLike | Tensor, name: str, number: int, number_name: str) -> Tensor:
    """Labels as a tensor of a dtype that the kernels read, without a copy where possible.

    Args:
        labels: tensor, numpy array or nested list of any integer or bool dtype; arrays may have any
            byte order and strides and may be read-only.
        name: the argument's name in error messages.
        number: number of label values. number_name: its name in error messages.

    Raises:
        TypeError: the dtype is no integer or bool dtype. ValueError: `number` is not a whole number
            of at least 1.
    """
    if not isinstance(number, (int, np.integer)) or number < 1:
        raise ValueError(f"{number_name} must be a whole number of at least 1, not {number!r}")
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        if array.size == 0 and not hasattr(labels, "dtype"):
            array = array.astype(np.int64)  # numpy makes an empty list float64
        if array.dtype.kind not in "iub":
            raise TypeError(f"{name} must have an integer or bool dtype, not {array.dtype}")
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        labels = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    if labels.dtype in KERNEL_DTYPES:
        return labels
    if labels.dtype not in WIDER:
        raise TypeError(f"{name} must have an integer or bool dtype, not {str(labels.dtype).removeprefix('torch.')}")
    # A uint64 value beyond int64 becomes negative: out of range, as it should be.
    return labels.to(WIDER[labels.dtype])


def confusion_matrix(
    pred: ArrayLike | Tensor,
    target: ArrayLike | Tensor,
    num_clusters: int,
    num_classes: int,
    ignore_index: int | None = 255,
    *,
    check: bool = False,
) -> Tensor | np.ndarray:
    """Count the positions of every pair of predicted cluster and target class.

    Args:
        pred: clusters 0 .. num_clusters - 1, any shape; tensor, numpy array or nested list of any
            integer or bool dtype.
        target: classes 0 .. num_classes - 1 of the same shape, in the same forms.
        num_clusters, num_classes: rows and columns of the result.
        ignore_index: positions with this target are left out, whatever `pred` is there; None leaves
            out none.
        check: on CUDA, raise for a value out of range. That waits for the GPU; without it such
            positions are left out.

    Returns:
        int64 [num_clusters, num_classes]: a tensor on the labels' device if one of them is a
        tensor, else a numpy array.

    Raises:
        TypeError: a dtype is no integer or bool dtype.
        ValueError: shapes differ, or a value is out of range (the text gives the value and its flat
            index; on CUDA only with `check`).
    """
    numpy = not isinstance(pred, Tensor) and not isinstance(target, Tensor)
    pred = as_labels(pred, "pred", num_clusters, "num_clusters")
    target = as_labels(target, "target", num_classes, "num_classes")
    counts = torch.zeros((num_clusters, num_classes), dtype=torch.int64, device=target.device)
    outside = add_confusion(counts, pred, target, ignore_index)
    if outside is not None and check and outside:
        raise_out_of_range(pred, target, num_clusters, num_classes, ignore_index)
    return counts.numpy() if numpy else counts


def add_confusion(counts: Tensor, pred: Tensor, target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Add the joint counts to `counts`, int64 [num_clusters, num_classes], on the labels' device.

    On the CPU a value out of range raises and leaves `counts` as it was. Elsewhere nothing waits
    for the device, and the number of positions with such values is returned, a tensor with one
    entry.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have one shape, not {list(pred.shape)} and {list(target.shape)}")
    if pred.device != target.device:
        raise ValueError(f"pred and target must be on one device, not {pred.device} and {target.device}")
    if pred.device.type != "cpu":
        if pred.is_cuda and cuda_library.unavailable() is None:
            added, outside = launch(cuda_library.run, pred, target, *counts.shape, ignore_index)
        else:
            added, outside = counts_and_outside(pred, target, *counts.shape, ignore_index)
        counts += added
        return outside
    module = extension.compiled()
    if module is not None:
        arrays = [labels.contiguous().numpy() for labels in (pred, target)]
        threads = torch.get_num_threads() if pred.numel() >= 2**18 else 1
        module.count_confusion(*arrays, counts.numpy(), ignore_index, threads)
        return None
    added, outside = counts_and_outside(pred, target, *counts.shape, ignore_index)
    if outside:
        raise_out_of_range(pred, target, *counts.shape, ignore_index)
    counts += added
    return None


def counts_and_outside(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Joint counts of the positions in range, and the number of the others (ignored ones not among
    them).

    Every position falls into some bin, so no result decides a size and the host never waits
    (torch.bincount would).
    """
    pred, target = pred.flatten().long(), target.flatten().long()
    cells = num_clusters * num_classes
    inside = (pred >= 0) & (pred < num_clusters) & (target >= 0) & (target < num_classes)
    cell = torch.where(inside, pred * num_classes + target, cells)
    if ignore_index is not None:
        cell = torch.where(target == ignore_index, cells + 1, cell)
    bins = torch.zeros(cells + 2, dtype=torch.int64, device=pred.device)
    bins.scatter_add_(0, cell, torch.ones_like(cell))
    return bins[:cells].view(num_clusters, num_classes), bins[cells]


def launch(
    run, pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """As `counts_and_outside`, by `run(function name, device, *arguments)`."""
    pred, target = pred.contiguous(), target.contiguous()
    bins = torch.zeros(num_clusters * num_classes + 1, dtype=torch.int64, device=pred.device)
    run(
        "infoseg_count_confusion", pred.device, pred.data_ptr(), KERNEL_DTYPES[pred.dtype], target.data_ptr(),
        KERNEL_DTYPES[target.dtype], pred.numel(), num_clusters, num_classes, int(ignore_index is not None),
        ignore_index or 0, bins.data_ptr(),
    )  # fmt: skip
    return bins[:-1].view(num_clusters, num_classes), bins[-1]


def raise_out_of_range(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> None:
    """Raise the ValueError about the first value out of range: the extension's own, in its words."""
    counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    bad_target = counted & ((target < 0) | (target >= num_classes))
    bad = (bad_target | (counted & ((pred < 0) | (pred >= num_clusters)))).flatten()
    place = int(bad.to(torch.uint8).argmax())
    in_target = bool(bad_target.flatten()[place])
    name, labels, number = ("target", target, num_classes) if in_target else ("pred", pred, num_clusters)
    raise ValueError(
        f"{name} holds {int(labels.flatten()[place])} at flat index {place}; 0 to {number - 1} are accepted"
    )
