"""The matching of clusters to classes."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..ops.linear_sum_assignment import linear_sum_assignment

METHODS = ("hungarian", "many_to_one")


@dataclass(frozen=True)
class Match:
    """A matching of clusters to classes, and its accuracy.

    mapping: int64 [clusters], the class of each cluster; -1 for none (more clusters than classes).
    matched: number of positions whose cluster is matched to their class.
    total: number of counted positions.
    """

    mapping: np.ndarray
    matched: int
    total: int

    @property
    def accuracy(self) -> float:
        """matched / total; NaN when nothing was counted."""
        return self.matched / self.total if self.total else float("nan")

    def apply(self, labels: np.ndarray, unmatched: int = 255) -> np.ndarray:
        """Replace cluster labels by classes, uint8; `unmatched` where a cluster has no class."""
        table: np.ndarray = np.where(self.mapping < 0, unmatched, self.mapping).astype(np.uint8)
        return table[labels]


def match_clusters(counts: Tensor | np.ndarray, method: str = "hungarian") -> Match:
    """Match clusters to classes so that as many positions as possible agree.

    Args:
        counts: integers [clusters, classes], as `confusion_matrix` returns.
        method: "hungarian" matches at most one cluster to a class and one class to a cluster.
            "many_to_one" gives each cluster its most frequent class; it gives higher scores, so
            report it under this name.

    Raises:
        ValueError: `counts` has another shape or dtype, or `method` is unknown.
    """
    check_method(method)
    counts = counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)
    if counts.ndim != 2 or counts.dtype.kind not in "iu":
        raise ValueError(f"counts must be an integer matrix [clusters, classes], not {counts.dtype} {counts.shape}")
    mapping = np.full(len(counts), -1, dtype=np.int64)
    if method == "hungarian":
        rows, cols = linear_sum_assignment(counts, maximize=True)
        mapping[rows] = cols
    elif counts.shape[1]:
        mapping[:] = counts.argmax(axis=1)
    rows = np.flatnonzero(mapping >= 0)
    return Match(mapping, int(counts[rows, mapping[rows]].sum()), int(counts.sum()))


def check_method(method: str) -> None:
    """Raise ValueError for an unknown method."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
