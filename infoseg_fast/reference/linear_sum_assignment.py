"""Optimal one-to-one assignment, by scipy."""

import numpy as np


def linear_sum_assignment(cost: np.ndarray, maximize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the assignment with the least (or largest) total cost: int64 [min(N, M)]
    each for a cost [N, M], [B, min(N, M)] each for a batch [B, N, M].
    """
    import scipy.optimize  # a fifth of the package's import time, and seldom used

    if cost.ndim == 2:
        rows, cols = scipy.optimize.linear_sum_assignment(cost, maximize)
        return rows.astype(np.int64, copy=False), cols.astype(np.int64, copy=False)
    if cost.ndim != 3:
        raise ValueError(f"expected a matrix [N, M] or a batch [B, N, M], got shape {list(cost.shape)}")
    solved = np.empty((2, len(cost), min(cost.shape[1:])), dtype=np.int64)
    for b, matrix in enumerate(cost):
        solved[:, b] = scipy.optimize.linear_sum_assignment(matrix, maximize)
    return solved[0], solved[1]
