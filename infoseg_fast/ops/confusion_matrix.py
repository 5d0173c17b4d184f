"""`confusion_matrix`: joint counts of predicted clusters and target classes."""

import numpy as np
import torch
from torch import Tensor

from .. import cuda_library, extension, reference
from ..reference.confusion_matrix import counts_and_outside, raise_out_of_range
from . import dispatch
from .record import Case, Op

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Dtypes that the CUDA kernel reads, with their numbers in csrc/confusion_matrix/confusion_matrix.cu.
CUDA_TYPES = {torch.uint8: 0, torch.int16: 1, torch.int32: 2, torch.int64: 3}


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
    *,
    check: bool = False,
) -> Tensor | np.ndarray:
    """Count the positions of every pair of predicted cluster and target class.

    Args:
        pred: clusters 0 .. num_clusters - 1, any shape, integer dtype; tensor or numpy array.
        target: classes 0 .. num_classes - 1 of the same shape, integer dtype.
        num_clusters, num_classes: rows and columns of the result.
        ignore_index: positions with this target are left out, whatever `pred` is there; None leaves
            out none.
        check: on CUDA, raise for a value out of range. That waits for the GPU; without it such
            positions are left out.

    Returns:
        int64 [num_clusters, num_classes]: a numpy array when both are, else a tensor on their device.

    Raises:
        TypeError: a dtype is not an integer dtype.
        ValueError: shapes differ, or a value is out of range (the text names the value and its flat
            index; on CUDA only with `check`).
    """
    numpy = isinstance(pred, np.ndarray) and isinstance(target, np.ndarray)
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    checked_counts_arguments(pred, "pred", num_clusters, "num_clusters")
    checked_counts_arguments(target, "target", num_classes, "num_classes")
    counts, outside = count_pairs(pred, target, num_clusters, num_classes, ignore_index)
    if outside is not None and check and outside:
        raise_out_of_range(pred, target, num_clusters, num_classes, ignore_index)
    return counts.numpy() if numpy else counts


def add_confusion(counts: Tensor, pred: Tensor, target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Add the joint counts to `counts`, int64 [num_clusters, num_classes]; `outside` as in `count_pairs`."""
    added, outside = count_pairs(pred, target, *counts.shape, ignore_index)
    counts += added
    return outside


def count_pairs(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """The joint counts of two label maps, and how many positions have a value out of range.

    On the CPU such a value raises, and the number is None. Elsewhere, and where PyTorch records or
    transforms the call, nothing waits for the device.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have one shape, not {list(pred.shape)} and {list(target.shape)}")
    if pred.device != target.device:
        raise ValueError(f"pred and target must be on one device, not {pred.device} and {target.device}")
    direct = dispatch.direct(pred, target)
    if pred.is_cuda and direct and cuda_library.unavailable() is None:
        return launch(cuda_library.run, pred, target, num_clusters, num_classes, ignore_index)
    module = extension.compiled() if pred.device.type == "cpu" and direct else None
    if module is not None:
        counts = torch.zeros(num_clusters, num_classes, dtype=torch.int64)
        arrays = [_readable(labels).numpy() for labels in (pred, target)]
        threads = torch.get_num_threads() if pred.numel() >= 2**18 else 1
        module.count_confusion(*arrays, counts=counts.numpy(), ignore_index=ignore_index, threads=threads)
        return counts, None
    counts, outside = counts_and_outside(pred, target, num_clusters, num_classes, ignore_index)
    if pred.device.type != "cpu" or not direct:
        return counts, outside
    if outside:
        raise_out_of_range(pred, target, num_clusters, num_classes, ignore_index)
    return counts, None


def _readable(labels: Tensor) -> Tensor:
    """These labels, contiguous and in a dtype that the extension reads."""
    return (labels.short() if labels.dtype == torch.int8 else labels).detach().contiguous()


def launch(
    run, pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """`counts_and_outside`, computed by `run(function name, device, *arguments)`."""
    pred, target = _readable(pred), _readable(target)
    bins = torch.zeros(num_clusters * num_classes + 1, dtype=torch.int64, device=pred.device)
    run(
        "infoseg_count_confusion", pred.device, pred.data_ptr(), CUDA_TYPES[pred.dtype], target.data_ptr(),
        CUDA_TYPES[target.dtype], pred.numel(), num_clusters, num_classes, int(ignore_index is not None),
        ignore_index or 0, bins.data_ptr(),
    )  # fmt: skip
    return bins[:-1].view(num_clusters, num_classes), bins[-1]


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, int]]:
    generator, num_classes = torch.Generator().manual_seed(7), case.settings["num_classes"]
    pred, target = (torch.randint(0, n, (case.B, *case.size), generator=generator) for n in (case.K, num_classes))
    maps = [x.to(device, torch.uint8) for x in (pred, target)]
    return maps, {"num_clusters": case.K, "num_classes": num_classes}


OP = Op(
    name="confusion_matrix",
    function=confusion_matrix,
    reference=reference.confusion_matrix,
    arguments=_arguments,
    floor=lambda case, phase: 2 * case.pixels,
    operations=lambda case, phase: 0,
    backends=("cpp", "cuda"),
    cases=(Case("counts 128x128", uses=("cpu",), B=16, settings={"num_classes": 27}),),
)
