"""Scores of a clustering as metrics of torchmetrics (extra [torchmetrics]).

    from infoseg_fast.compat.torchmetrics import ClusterAccuracy, MatchedJaccardIndex

The state is one matrix of int64 counts. So memory does not depend on the number of images, scores
are exact, and clusters are matched to classes once, over all counts. `compute` sums over the
processes of torch.distributed, as every metric of torchmetrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        f"infoseg_fast.compat.torchmetrics needs torchmetrics ({error}): pip install 'infoseg-fast[torchmetrics]'"
    ) from error

from ..ops.confusion_matrix import as_labels, check_ignored, check_number, count_pairs
from ..scores.matching import check_method
from ..scores.metrics import ClusterMetrics

AVERAGES = ("macro", "weighted", "none", None)


class _MatchedMetric(Metric):
    """A metric whose state is the confusion matrix of clusters and classes."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    confusion: Tensor
    outside: Tensor

    def __init__(
        self,
        num_clusters: int | None = None,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        method: str = "hungarian",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        num_clusters = num_classes if num_clusters is None else num_clusters
        num_classes = num_clusters if num_classes is None else num_classes
        check_number(num_clusters, "num_clusters")
        check_number(num_classes, "num_classes")
        check_ignored(ignore_index)
        check_method(method)
        self.num_clusters, self.num_classes = int(num_clusters), int(num_classes)
        self.ignore_index, self.method = ignore_index, method
        counts = torch.zeros(self.num_clusters, self.num_classes, dtype=torch.int64)
        self.add_state("confusion", default=counts, dist_reduce_fx="sum")
        self.add_state("outside", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count label maps.

        Args:
            preds: clusters of any integer dtype, in the shape of `target`, or floating-point scores
                [B, num_clusters, ...], whose argmax along dimension 1 is the cluster.
            target: classes of any integer dtype. Positions of `ignore_index` do not count.

        Raises:
            TypeError: preds or target is no tensor, or target has another dtype.
            ValueError: shapes or devices differ, or a label is out of range. On a GPU `compute`
                raises for a label out of range, since nothing waits for the device.
        """
        for name, value in (("preds", preds), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
        if preds.is_floating_point():
            if preds.ndim != target.ndim + 1 or preds.shape[1] != self.num_clusters:
                raise ValueError(
                    f"preds of floating-point scores must be [B, {self.num_clusters}, ...] with one dimension more "
                    f"than target {list(target.shape)}, not {list(preds.shape)}"
                )
            preds = preds.argmax(dim=1)
        preds = as_labels(preds, "preds", self.num_clusters, "num_clusters")
        target = as_labels(target, "target", self.num_classes, "num_classes")
        counts, outside = count_pairs(preds, target, self.num_clusters, self.num_classes, self.ignore_index)
        # Not in place: a state that was reset in inference mode cannot change outside of it.
        self.confusion = self.confusion + counts
        if outside is not None:
            self.outside = self.outside + outside

    def set_dtype(self, dst_type: Any) -> Any:
        """Nothing: counts are whole numbers."""
        return self

    def scores(self) -> dict:
        """`ClusterMetrics.compute` for the counts of this process."""
        metrics = ClusterMetrics(self.num_clusters, self.num_classes, self.ignore_index, self.method)
        metrics.add(self.confusion.cpu(), self.outside.cpu())
        return metrics.compute()

    def _result(self, value: float | list[float]) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.confusion.device)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value or several, as every metric of torchmetrics does."""
        return self._plot(val, ax)


class ClusterAccuracy(_MatchedMetric):
    """The share of the positions whose cluster is matched to their class. The matching maximises
    it.

    `compute` returns a float32 scalar, NaN if nothing was counted. With only `num_classes` it equals
    torchmetrics' own `ClusterAccuracy`, and does not need the package torch-linear-assignment.

    Args:
        num_clusters, num_classes: numbers of label values. One of them may be left out if they are
            equal.
        ignore_index: target value that does not count. None: all values count.
        method: "hungarian", or "many_to_one", which gives each cluster its most frequent class.
        kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        TypeError, ValueError: a number is below 1, or another argument is not as above.
    """

    def compute(self) -> Tensor:
        """The accuracy over all counts."""
        return self._result(self.scores()["pixel_accuracy"])


class MatchedJaccardIndex(_MatchedMetric):
    """Intersection over union of each class, with clusters matched as in `ClusterAccuracy`.

    Args:
        num_clusters, num_classes, ignore_index, method, kwargs: as in `ClusterAccuracy`.
        average: "macro": the mean over the classes in the target (the mean IoU of
            `ClusterMetrics`). "weighted": the mean weighted by the share of each class in the
            target. "none" or None: the value of each class, [num_classes], NaN for a class in
            neither map.

    Raises:
        ValueError: `average` is none of these, or see `ClusterAccuracy`.
    """

    def __init__(
        self,
        num_clusters: int | None = None,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        method: str = "hungarian",
        average: str | None = "macro",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_clusters, num_classes, ignore_index, method, **kwargs)
        if average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(map(str, AVERAGES))}, not {average!r}")
        self.average = average

    def compute(self) -> Tensor:
        """The index over all counts."""
        scores = self.scores()
        if self.average == "macro":
            return self._result(scores["mean_iou"])
        if self.average == "weighted":
            shares = scores["class_shares"]
            if not scores["num_pixels"]:
                return self._result(float("nan"))
            return self._result(sum(share * iou for share, iou in zip(shares, scores["iou"], strict=True) if share))
        return self._result(scores["iou"])
