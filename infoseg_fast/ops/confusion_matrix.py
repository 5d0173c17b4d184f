"""`confusion_matrix`: counts of pairs of predicted cluster and target class."""

import operator
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .. import cuda_library, extension, reference
from ..reference.confusion_matrix import counts_and_outside, raise_out_of_range
from . import dispatch
from .record import Case, Op

# The dtypes that the kernels read, with their numbers in csrc/confusion_matrix/confusion_matrix.cu.
KERNEL_DTYPES = {torch.uint8: 0, torch.int16: 1, torch.int32: 2, torch.int64: 3}
# The dtype to which the kernels convert another dtype, without loss (uint64: up to 2^63 - 1).
WIDER = {
    torch.bool: torch.uint8,
    torch.int8: torch.int16,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def as_labels(labels: ArrayLike | Tensor, name: str, number: int, number_name: str) -> Tensor:
    """Labels as a tensor in a dtype that the kernels read, without a copy if possible.

    Args:
        labels: tensor, numpy array or nested list of any integer or bool dtype. Arrays may have any
            byte order and strides, and may be read-only.
        name: name of the argument in errors.
        number: number of label values.
        number_name: name of `number` in errors.

    Raises:
        TypeError: the dtype is no integer or bool dtype.
        ValueError: `number` is not a whole number of at least 1, or a masked array masks a position.
    """
    check_number(number, number_name)
    if not isinstance(labels, Tensor):
        if np.ma.is_masked(labels):
            raise ValueError(f"{name} must have no masked positions: fill them, those of a target with ignore_index")
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
    # A uint64 value above int64 becomes negative, which is out of range too.
    return labels.to(WIDER[labels.dtype])


def check_number(number: int, name: str, least: int = 1) -> None:
    """Raise ValueError unless `number` is a whole number of at least `least`."""
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {number!r}")


def check_ignored(ignore_index: int | None) -> None:
    """Raise TypeError unless `ignore_index` is None or a whole number of 64 bits."""
    try:  # contextlib.suppress would end a graph of PyTorch 2.9's compiler
        if ignore_index is None or -(2**63) <= operator.index(ignore_index) < 2**63:
            return
    except TypeError:
        pass
    raise TypeError(f"ignore_index must be None or a whole number of 64 bits, not {ignore_index!r}")


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
        target: classes 0 .. num_classes - 1, in the same shape and of the same types.
        num_clusters, num_classes: rows and columns of the result.
        ignore_index: positions with this target do not count, whatever `pred` is. None: all count.
        check: whether to raise for a value out of range on CUDA, which waits for the GPU. Otherwise
            such positions do not count.

    Returns:
        int64 [num_clusters, num_classes]: a tensor on the labels' device if one of them is a
        tensor, else a numpy array.

    Raises:
        TypeError: a dtype is no integer or bool dtype.
        ValueError: shapes or devices differ, a masked array masks a position, or a value is out of
            range (on CUDA only with `check`). The text names the value and its flat index.
    """
    numpy = not isinstance(pred, Tensor) and not isinstance(target, Tensor)
    check_ignored(ignore_index)
    pred = as_labels(pred, "pred", num_clusters, "num_clusters")
    target = as_labels(target, "target", num_classes, "num_classes")
    counts, outside = count_pairs(pred, target, num_clusters, num_classes, ignore_index)
    if outside is not None and check and outside:
        raise_out_of_range(pred, target, num_clusters, num_classes, ignore_index)
    return counts.numpy() if numpy else counts


def add_confusion(counts: Tensor, pred: Tensor, target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Add the counts of two label maps to `counts`, int64 [num_clusters, num_classes] on their
    device. If it raises, `counts` is unchanged.

    Returns:
        The number of positions out of range, as `count_pairs` returns it.
    """
    check_pair(pred, target)
    if _add_on_cpu(counts, pred, target, ignore_index):
        return None
    added, outside = count_pairs(pred, target, counts.shape[0], counts.shape[1], ignore_index)
    counts += added
    return outside


def count_pairs(
    pred: Tensor, target: Tensor, num_clusters: int, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """The counts of two label maps, and the number of positions with a value out of range.

    On the CPU such a value raises ValueError, and the number is None. On other devices, and if
    PyTorch records or transforms the call, nothing waits for the device.
    """
    check_pair(pred, target)
    direct = dispatch.direct(pred, target)
    if pred.is_cuda and direct and cuda_library.unavailable() is None:
        return launch(cuda_library.run, pred, target, num_clusters, num_classes, ignore_index)
    if pred.device.type != "cpu" or not direct:
        return counts_and_outside(pred, target, num_clusters, num_classes, ignore_index)
    counts = torch.zeros(num_clusters, num_classes, dtype=torch.int64, device="cpu")
    if not _add_on_cpu(counts, pred, target, ignore_index):
        counts, outside = counts_and_outside(pred, target, num_clusters, num_classes, ignore_index)
        if outside:
            raise_out_of_range(pred, target, num_clusters, num_classes, ignore_index)
    return counts, None


def check_pair(pred: Tensor, target: Tensor) -> None:
    """Raise ValueError unless the label maps have one shape and device."""
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have one shape, not {list(pred.shape)} and {list(target.shape)}")
    if pred.device != target.device:
        raise ValueError(f"pred and target must be on one device, not {pred.device} and {target.device}")


def _add_on_cpu(counts: Tensor, pred: Tensor, target: Tensor, ignore_index: int | None) -> bool:
    """Add the counts by the C++ kernel. Returns False if it cannot run."""
    if pred.device.type != "cpu" or not dispatch.direct(pred, target):
        return False
    module = extension.compiled()
    if module is None:
        return False
    threads = torch.get_num_threads() if pred.numel() >= 2**18 else 1
    module.count_confusion(
        pred.contiguous().numpy(),
        target.contiguous().numpy(),
        counts=counts.numpy(),
        ignore_index=ignore_index,
        threads=threads,
    )
    return True


def launch(
    run: Callable[..., object],
    pred: Tensor,
    target: Tensor,
    num_clusters: int,
    num_classes: int,
    ignore_index: int | None,
) -> tuple[Tensor, Tensor]:
    """`counts_and_outside`, computed by `run(function name, device, *arguments)`."""
    pred, target = pred.contiguous(), target.contiguous()
    bins = torch.zeros(num_clusters * num_classes + 1, dtype=torch.int64, device=pred.device)
    run(
        "infoseg_count_confusion", pred.device, pred.data_ptr(), KERNEL_DTYPES[pred.dtype], target.data_ptr(),
        KERNEL_DTYPES[target.dtype], pred.numel(), num_clusters, num_classes, int(ignore_index is not None),
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
