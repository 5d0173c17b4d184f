"""`linear_sum_assignment`: optimal one-to-one assignment for a matrix or a batch of matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .. import cuda_library, extension, reference
from ..errors import BackendUnavailableError
from . import dispatch
from .record import Case, Op

BACKENDS = ("auto", "reference", "cpp", "cuda")
# Dtypes that the CUDA kernels read, with their numbers in
# csrc/linear_sum_assignment/linear_sum_assignment.cu.
CUDA_TYPES = {torch.float32: 0, torch.float64: 1, torch.int64: 2}
CUDA_STATUS = {
    1: "cost matrix contains invalid numeric entries: {line} {place}{where} holds one",
    2: "cost matrix is infeasible: {line} {place}{where} has no allowed {other} left beside the other {line}s'",
    3: "cost matrix{where} holds integers too far apart to be summed exactly in 64 bits; the CPU takes them",
}

_solve: Any = None  # the extension's solver, set by the first call: looking it up takes longer than a small problem


def linear_sum_assignment(
    cost_matrix: Tensor | ArrayLike, maximize: bool = False, *, backend: str = "auto", check: bool | None = None
) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """Choose entries, at most one per row and column, with the least (or largest) total cost.

    It is equivalent to scipy's function of this name. Floating-point costs are summed in float64,
    integers exactly.

    Args:
        cost_matrix: [N, M], or a batch [B, N, M]; tensor, numpy array or nested list of a dtype that
            numpy casts safely to float64 (bool, integers, floats of up to 64 bits). Entries of +inf
            are forbidden (-inf if maximising).
        maximize: whether to choose the largest total.
        backend: "auto", "cpp" (C++ solver on the CPU), "cuda" (CUDA tensors, up to 2,048 rows and
            columns) or "reference" (scipy).
        check: whether to raise for a problem without a solution on CUDA, which waits for the GPU.
            On the CPU such a problem always raises.

    Returns:
        Rows and columns, int64 [min(N, M)] each, or [B, min(N, M)] for a batch, sorted by row:
        tensors on the device of the cost for a tensor, else numpy arrays. On CUDA the columns of a
        problem without a solution are -1.

    Raises:
        ValueError: the cost has another number of dimensions, or a NaN or an infinity that every
            assignment would prefer, or no assignment avoids the forbidden entries (these on CUDA
            only with `check`). The text names the row.
        TypeError: the dtype is another one.
        BackendUnavailableError: the backend that is named cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    cost = cost_matrix
    if isinstance(cost, Tensor):
        solve = _solve_tensor if dispatch.direct(cost) else _solve_recorded
        return solve(cost.detach(), bool(maximize), backend, bool(check))
    if backend == "cuda":
        raise BackendUnavailableError("backend 'cuda' takes tensors on a CUDA device, not numpy arrays")
    return _solve_array(cost, maximize, backend)


def _solve_tensor(cost: Tensor, maximize: bool, backend: str, check: bool) -> tuple[Tensor, Tensor]:
    if cost.device.type != "cpu" or backend == "cuda":
        return _solve_on_device(cost, maximize, backend, check)
    rows, cols = _solve_array(_array_of(cost), maximize, backend)
    return torch.from_numpy(rows), torch.from_numpy(cols)


# The op for calls that PyTorch compiles, records or transforms.
_solve_recorded = torch.library.custom_op("infoseg_fast::linear_sum_assignment", _solve_tensor, mutates_args=())


@_solve_recorded.register_fake
def _empty_answer(cost: Tensor, maximize: bool, backend: str, check: bool) -> tuple[Tensor, Tensor]:
    if cost.ndim not in (2, 3):
        raise _wrong_shape(cost.shape)
    shape = (*cost.shape[:-2], torch.sym_min(*cost.shape[-2:]))
    return cost.new_empty(shape, dtype=torch.int64), cost.new_empty(shape, dtype=torch.int64)


@_solve_recorded.register_vmap
def _solve_mapped(info: Any, in_dims: Any, cost: Tensor, *how: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    cost = cost.movedim(in_dims[0], 0)
    if cost.ndim not in (3, 4):
        raise _wrong_shape(cost.shape[1:])
    rows, cols = _solve_recorded(cost.flatten(0, -3), *how)
    return (rows.view(*cost.shape[:-2], -1), cols.view(*cost.shape[:-2], -1)), (0, 0)


def _wrong_shape(shape: Sequence[int]) -> ValueError:
    return ValueError(
        f"expected a matrix (2-D array), got a {len(shape)} array: a matrix [N, M] or a batch [B, N, M] is accepted, "
        f"not the shape {list(shape)}"
    )


def _solve_array(cost: ArrayLike, maximize: bool, backend: str) -> tuple[np.ndarray, np.ndarray]:
    global _solve
    by_scipy = backend == "reference" or (_solve is None and not _find_solver(backend))
    if type(cost) is np.ndarray and cost.ndim == 2 and not by_scipy:
        try:
            return _solve(cost, maximize)
        except TypeError:
            pass  # the dtype is converted below
    cost = _as_numbers(cost)
    if cost.ndim not in (2, 3):
        raise _wrong_shape(cost.shape)
    if by_scipy:
        return reference.linear_sum_assignment(cost, maximize)
    threads = torch.get_num_threads() if cost.ndim == 3 else 1
    try:
        return _solve(cost, bool(maximize), threads)
    except TypeError:
        return _solve(readable(cost), bool(maximize), threads)


def _find_solver(backend: str) -> bool:
    global _solve
    module = extension.compiled()
    if module is None:
        message = f"linear_sum_assignment does not run on the cpp backend: {extension.unavailable()}"
        if backend == "cpp":
            raise BackendUnavailableError(message)
        dispatch.log_once(message)
        return False
    _solve = module.linear_sum_assignment
    return True


def _as_numbers(cost: ArrayLike) -> np.ndarray:
    """The cost as an array whose dtype numpy casts safely to float64. As in scipy, other arrays are
    refused, and other sequences become float64.
    """
    found = np.asarray(cost)
    if np.can_cast(found.dtype, np.float64):
        return found
    if isinstance(cost, np.ndarray):
        raise _no_safe_cast(found.dtype)
    return np.asarray(cost, np.float64)


def readable(cost: np.ndarray) -> np.ndarray:
    """A copy of the same problem, of a dtype from `_as_numbers`, in one that the solver reads:
    float32, float64 or int64.
    """
    kind, size = cost.dtype.kind, cost.dtype.itemsize
    if kind == "u" and size == 8:
        # Subtracting 2**63 from all entries changes no choice, and all entries then fit.
        return (cost.astype(np.uint64) ^ np.uint64(2**63)).view(np.int64)
    if kind in "biu":
        return cost.astype(np.int64)
    return cost.astype(np.float32 if size == 4 else np.float64)


def _no_safe_cast(dtype: object) -> TypeError:
    return TypeError(f"Cannot cast array data from {dtype!r} to dtype('float64') according to the rule 'safe'")


def _array_of(cost: Tensor) -> np.ndarray:
    if cost.is_floating_point() and cost.dtype not in (torch.float16, torch.float32, torch.float64):  # numpy has none
        cost = cost.float()
    return cost.numpy(force=True)


def _solve_on_device(cost: Tensor, maximize: bool, backend: str, check: bool) -> tuple[Tensor, Tensor]:
    if cost.is_complex():
        raise _no_safe_cast(cost.dtype)
    if cost.ndim not in (2, 3):
        raise _wrong_shape(cost.shape)
    if backend == "cpp":
        raise BackendUnavailableError(f"backend 'cpp' takes tensors on the CPU, not on {cost.device}")
    if backend != "reference":
        reason = _unsupported_by_cuda(cost)
        if reason is None:
            return _solve_on_cuda(cost, maximize, check)
        if backend == "cuda":
            raise BackendUnavailableError(f"backend 'cuda' cannot run linear_sum_assignment: {reason}")
        dispatch.log_once(f"linear_sum_assignment does not run on the cuda backend: {reason}")
    rows, cols = _solve_array(_array_of(cost), maximize, backend)
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(cols).to(cost.device)


def _unsupported_by_cuda(cost: Tensor) -> str | None:
    if not cost.is_cuda:
        return f"it takes tensors on a CUDA device, not on {cost.device}"
    reason, library = cuda_library.unavailable(), cuda_library.library()
    if library is not None and reason is None and max(cost.shape[-2:]) > (most := library.infoseg_assign_max_columns()):
        return f"it takes up to {most} rows and columns, not {list(cost.shape[-2:])}"
    if reason is None and cost.dtype == torch.uint64:
        return "it does not take uint64"
    return reason


def _solve_on_cuda(cost: Tensor, maximize: bool, check: bool) -> tuple[Tensor, Tensor]:
    if cost.dtype not in CUDA_TYPES:
        cost = cost.float() if cost.is_floating_point() else cost.long()
    rows, cols, status = launch(cuda_library.run, cost, maximize)
    if check:
        explain(status, cost)
    return rows, cols


def launch(run: Callable[..., object], cost: Tensor, maximize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column indices and the status int32 [B, 2], by `run(function name, device,
    *arguments)`. It does not wait for the device.
    """
    batch = cost if cost.ndim == 3 else cost[None]
    number, height, width = batch.shape
    if height > max(width, 32):
        # The threads of a block go along the longer side, which must be contiguous in memory.
        batch = batch.mT.contiguous().mT
    indices = torch.empty((2, number, min(height, width)), dtype=torch.int64, device=cost.device)
    status = torch.zeros((number, 2), dtype=torch.int32, device=cost.device)
    run(
        "infoseg_assign", cost.device, batch.data_ptr(), CUDA_TYPES[cost.dtype], *batch.shape, *batch.stride(),
        int(maximize), indices[0].data_ptr(), indices[1].data_ptr(), status.data_ptr(),
    )  # fmt: skip
    rows, cols = indices
    return (rows, cols, status) if cost.ndim == 3 else (rows[0], cols[0], status)


def explain(status: Tensor, cost: Tensor) -> None:
    """Raise ValueError for the first problem that was not solved."""
    codes = status.cpu().numpy()
    failed = np.flatnonzero(codes[:, 0])
    if not len(failed):
        return
    problem = int(failed[0])
    code, place = codes[problem].tolist()
    line, other = ("row", "column") if cost.shape[-2] <= cost.shape[-1] else ("column", "row")
    where = f" of cost[{problem}]" if cost.ndim == 3 else ""
    raise ValueError(CUDA_STATUS[code].format(line=line, other=other, place=place, where=where))


def _arguments(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, bool]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.rand(case.B, case.K, case.K, generator=generator).to(case.dtype).to(device, dtype)], {}


OP = Op(
    name="linear_sum_assignment",
    function=linear_sum_assignment,
    reference=lambda cost: tuple(map(torch.from_numpy, reference.linear_sum_assignment(cost.numpy()))),
    arguments=_arguments,
    floor=lambda case, phase: case.B * case.K**2 * case.dtype.itemsize,
    operations=lambda case, phase: 0,
    backends=("cpp", "cuda"),
    cases=(Case("batch of 256 x 256", uses=("cpu",), B=16, K=256),),
)
