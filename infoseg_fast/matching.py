"""Optimal one-to-one assignment, and the matching of clusters to classes made with it."""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

METHODS = ("hungarian", "many_to_one")


def linear_sum_assignment(
    cost: Tensor | np.ndarray, maximize: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """Choose entries, at most one in a row and a column, of least (or greatest) total cost.

    Args:
        cost: [N, M], or a batch [B, N, M]; numpy array or tensor. An infinite entry is forbidden.
        maximize: choose the greatest total instead.
        backend: "auto" or "reference" (scipy's solver).

    Returns:
        rows, cols: int64 [min(N, M)] each, or [B, min(N, M)] for a batch, sorted by row; numpy for numpy, tensors on
        the cost's device for a tensor.

    Raises:
        ValueError: a NaN, or a matrix in which no assignment avoids the forbidden entries.
    """
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend must be 'auto' or 'reference', not {backend!r}")
    if isinstance(cost, Tensor):
        rows, cols = linear_sum_assignment(cost.detach().cpu().numpy(), maximize)
        return torch.from_numpy(rows).to(cost.device), torch.from_numpy(cols).to(cost.device)
    cost = np.asarray(cost)
    if cost.ndim == 2:
        rows, cols = scipy.optimize.linear_sum_assignment(cost, maximize)
        return rows.astype(np.int64, copy=False), cols.astype(np.int64, copy=False)
    if cost.ndim != 3:
        raise ValueError(f"cost must be [N, M] or [B, N, M], not of shape {list(cost.shape)}")
    solved = np.empty((2, len(cost), min(cost.shape[1:])), dtype=np.int64)
    for b, matrix in enumerate(cost):
        solved[:, b] = scipy.optimize.linear_sum_assignment(matrix, maximize)
    return solved[0], solved[1]


@dataclass(frozen=True)
class Match:
    """A matching of clusters to classes and what it scores.

    mapping: int64 [clusters]: the class of each cluster, -1 for one without a class (clusters outnumber classes).
    matched: positions whose cluster's class is theirs. total: all positions counted.
    """

    mapping: np.ndarray
    matched: int
    total: int

    @property
    def accuracy(self) -> float:
        """matched / total; NaN when nothing was counted."""
        return self.matched / self.total if self.total else float("nan")

    def apply(self, labels: np.ndarray, unmatched: int = 255) -> np.ndarray:
        """Classes for cluster labels, uint8, `unmatched` where a cluster has no class."""
        table = np.where(self.mapping < 0, unmatched, self.mapping).astype(np.uint8)
        return table[labels]


def match_clusters(counts: Tensor | np.ndarray, method: str = "hungarian") -> Match:
    """Match clusters to classes so that as many positions as possible agree.

    Args:
        counts: int64 [clusters, classes], as `confusion_matrix` returns.
        method: "hungarian", one cluster for a class at most and one class for a cluster at most; or "many_to_one", each
            cluster given its commonest class (reads the labels more freely: report it under that name).
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    counts = counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)
    if counts.ndim != 2 or counts.dtype.kind not in "iu":
        raise ValueError(f"counts must be [clusters, classes] of an integer dtype, not {counts.dtype} {counts.shape}")
    mapping = np.full(len(counts), -1, dtype=np.int64)
    if method == "hungarian":
        rows, cols = linear_sum_assignment(counts, maximize=True)
        mapping[rows] = cols
    else:
        mapping[:] = counts.argmax(axis=1)
    rows = np.flatnonzero(mapping >= 0)
    return Match(mapping, int(counts[rows, mapping[rows]].sum()), int(counts.sum()))
