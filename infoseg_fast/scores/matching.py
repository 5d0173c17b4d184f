"""The matching of clusters to classes."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..ops.linear_sum_assignment import linear_sum_assignment

METHODS = ("hungarian", "many_to_one")


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
