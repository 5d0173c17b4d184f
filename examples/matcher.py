"""The matcher in the place of scipy's and of torch-linear-assignment's.

python matcher.py
"""

import numpy as np
import scipy.optimize
import torch

import infoseg_fast as isf
from infoseg_fast.compat.torch_linear_assignment import assignment_to_indices, batch_linear_assignment


def main(problems: int = 100, workers: int = 20, tasks: int = 30) -> None:
    costs = np.random.default_rng(0).random((problems, workers, tasks))

    # One matrix: the same call, with numpy or with torch.
    rows, cols = isf.linear_sum_assignment(costs[0])
    expected = scipy.optimize.linear_sum_assignment(costs[0])
    print(f"one matrix: total {costs[0][rows, cols].sum():.6f}, of scipy {costs[0][expected].sum():.6f}")

    # A batch, as a detector's queries and objects: one call, and no loop.
    rows, cols = isf.linear_sum_assignment(torch.from_numpy(costs))
    total = torch.from_numpy(costs).gather(2, cols[..., None]).sum()
    loop = sum(cost[scipy.optimize.linear_sum_assignment(cost)].sum() for cost in costs)
    print(f"batch of {problems}: total {total:.6f}, of a loop over scipy {loop:.6f}")

    # The functions of torch-linear-assignment: a worker without a task has -1.
    assignment = batch_linear_assignment(torch.from_numpy(costs).mT)
    print(f"{tasks} workers, {workers} tasks: {int((assignment[0] < 0).sum())} workers have no task")
    pairs, _ = assignment_to_indices(assignment)
    assert pairs.shape == (problems, workers)


if __name__ == "__main__":
    main()
