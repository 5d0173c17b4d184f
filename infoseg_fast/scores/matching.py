"""The matching of clusters to classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..ops.linear_sum_assignment import linear_sum_assignment

METHODS = ("hungarian", "many_to_one")


@dataclass(frozen=True)
class Match:
    """A matching of clusters to classes, and its accuracy.

    Attributes:
        mapping: int64 [clusters], the class of each cluster, -1 for none.
        matched: number of positions whose cluster is matched to their class.
        total: number of counted positions.
    """

    mapping: np.ndarray
    matched: int
    total: int

    @property
    def accuracy(self) -> float:
        """matched / total. NaN if nothing was counted."""
        return self.matched / self.total if self.total else float("nan")

    def apply(self, labels: np.ndarray, unmatched: int = 255) -> np.ndarray:
        """Cluster labels, integers of any shape, as classes, uint8. `unmatched`: no class."""
        return class_of_cluster(self.mapping, unmatched)[labels]


def class_of_cluster(mapping: Sequence[int] | np.ndarray, unmatched: int = 255) -> np.ndarray:
    """The class of each cluster as a table for label maps, uint8 [>= 256]. `unmatched` for a cluster
    without a class, and for the labels after the last cluster.
    """
    table = np.full(max(256, len(mapping)), unmatched, np.uint8)
    table[: len(mapping)] = np.where(np.asarray(mapping) < 0, unmatched, mapping)
    return table


def match_clusters(counts: Tensor | np.ndarray, method: str = "hungarian") -> Match:
    """Match clusters to classes so that as many positions as possible agree.

    Args:
        counts: integers [clusters, classes], as `confusion_matrix` returns them.
        method: "hungarian" matches one to one. "many_to_one" gives each cluster its most frequent
            class. Its scores are higher, so report them under this name.

    Returns:
        A `Match` with the class of each cluster (`mapping`) and the `accuracy`.

    Raises:
        ValueError: `counts` has another shape or dtype or a negative number, or `method` is unknown.
    """
    check_method(method)
    counts = counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)
    if counts.ndim != 2 or counts.dtype.kind not in "iu":
        raise ValueError(f"counts must be an integer matrix [clusters, classes], not {counts.dtype} {counts.shape}")
    if (counts < 0).any():
        raise ValueError(f"counts must be at least 0, not {counts.min()}")
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
