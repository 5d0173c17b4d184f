"""The functions of the package torch-linear-assignment, with this package's solvers.

from infoseg_fast.compat.torch_linear_assignment import batch_linear_assignment
"""

import torch
from torch import Tensor

from ..ops.linear_sum_assignment import linear_sum_assignment


def batch_linear_assignment(cost: Tensor) -> Tensor:
    """Assign tasks to workers with the least total cost, for a batch of problems.

    Args:
        cost: tensor [B, W, T] of any real dtype, for W workers and T tasks. Integers are summed
            exactly. Entries of +inf are forbidden.

    Returns:
        int64 [B, W] on the device of `cost`: the task of each worker, -1 for a worker without a
        task (W > T). On CUDA nothing waits for the device, and a problem without a solution has -1
        for all workers.

    Raises:
        ValueError: `cost` has not three dimensions. On the CPU also: it has a NaN or -inf, or no
            assignment avoids the forbidden entries.
        TypeError: `cost` is not a tensor, or its dtype is complex.
    """
    if not isinstance(cost, Tensor):
        raise TypeError(f"cost must be a tensor [B, W, T], not {type(cost).__name__}")
    if cost.ndim != 3:
        raise ValueError(f"Need 3-dimensional tensor with shape (B, W, T). It has the shape {tuple(cost.shape)}")
    workers, tasks = linear_sum_assignment(cost.detach())
    assert isinstance(workers, Tensor) and isinstance(tasks, Tensor)
    if cost.shape[1] <= cost.shape[2]:  # every worker has a task: `workers` counts from 0
        return tasks
    return torch.full(cost.shape[:2], -1, device=cost.device).scatter_(1, workers, tasks)


def assignment_to_indices(assignment: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of an assignment as scipy returns them: rows in ascending order, and their columns.

    Args:
        assignment: integers [B, W], as `batch_linear_assignment` returns them. All problems must
            have the same number N of workers with a task.

    Returns:
        Rows and columns, int64 [B, N] each; [0, 0] for an empty batch.

    Raises:
        ValueError: the numbers of workers with a task differ.
    """
    if len(assignment) == 0:
        return (empty := torch.zeros(0, 0, dtype=torch.int64, device=assignment.device)), empty.clone()
    has_task = assignment >= 0
    numbers = has_task.sum(dim=1)
    if (numbers != numbers[0]).any():
        raise ValueError(f"Inconsistent matching sizes: from {int(numbers.min())} to {int(numbers.max())} pairs")
    shape = len(assignment), int(numbers[0])
    return has_task.nonzero()[:, 1].reshape(shape), assignment[has_task].reshape(shape)
