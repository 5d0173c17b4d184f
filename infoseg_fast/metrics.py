"""`ClusterMetrics`: streaming scores of a clustering against ground truth, from one matrix of exact counts."""

import numpy as np
import torch
from torch import Tensor

from .confusion import confusion_matrix
from .matching import match_clusters


def normalized_mutual_information(counts: np.ndarray) -> float:
    """I(cluster; class) / mean of the two entropies, from joint counts; 0 where both entropies are 0."""
    joint = counts / counts.sum()
    rows, cols = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(p):
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    mean = (entropy(rows) + entropy(cols)) / 2
    return max(0.0, entropy(rows) + entropy(cols) - entropy(joint.ravel())) / mean if mean > 0 else 0.0


class ClusterMetrics:
    """Scores of a segmentation whose clusters have no names, over any number of images, in constant memory.

    Counts are int64 over all positions seen; clusters are matched to classes once, over all of them.

    Args:
        num_clusters, num_classes: rows and columns of the counts.
        ignore_index: target value that is left out; None counts all.
        method: how clusters are matched, see `match_clusters`.
    """

    def __init__(
        self, num_clusters: int, num_classes: int, ignore_index: int | None = 255, method: str = "hungarian"
    ) -> None:
        self.num_clusters, self.num_classes = num_clusters, num_classes
        self.ignore_index, self.method = ignore_index, method
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self.counts = torch.zeros(self.num_clusters, self.num_classes, dtype=torch.int64)

    def update(self, pred: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Count one or more label maps; `pred` and `target` as in `confusion_matrix`."""
        self.add(confusion_matrix(pred, target, self.num_clusters, self.num_classes, self.ignore_index))

    def add(self, counts: Tensor | np.ndarray) -> None:
        """Add counts made elsewhere (`segment_and_count`, another process): int64 [num_clusters, num_classes]."""
        counts = torch.as_tensor(counts)
        self.counts = self.counts.to(counts.device) + counts

    def sync(self) -> None:
        """Sum the counts of all processes of torch.distributed's default group, in each of them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)

    def compute(self) -> dict:
        """The scores; without any counted position all ratios are NaN.

        Returns:
            pixel_accuracy: matched / counted. mean_iou: over the classes that occur in the target. nmi: normalised
            mutual information (arithmetic mean). majority_accuracy: of the constant predictor. class_shares: of each
            class in the target. iou: of each class, NaN for one that occurs neither in the target nor the prediction.
            mapping: class of each cluster, -1 for none. num_pixels: counted. confusion: int64 [clusters, classes].
        """
        counts = self.counts.cpu().numpy()
        total = int(counts.sum())
        match = match_clusters(counts, self.method)
        classes = counts.sum(axis=0)
        matched = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        for cluster, cls in enumerate(match.mapping):
            if cls >= 0:
                matched[cls] += counts[cluster]
        true_positive = np.diagonal(matched)
        union = classes + matched.sum(axis=1) - true_positive
        nan = float("nan")
        iou = [int(t) / int(u) if u else nan for t, u in zip(true_positive, union, strict=True)]
        present = [x for x, n in zip(iou, classes, strict=True) if n]
        return {
            "pixel_accuracy": match.accuracy,
            "mean_iou": sum(present) / len(present) if present else nan,
            "nmi": normalized_mutual_information(counts) if total else nan,
            "majority_accuracy": int(classes.max()) / total if total else nan,
            "class_shares": [int(n) / total if total else nan for n in classes],
            "iou": iou,
            "mapping": match.mapping.tolist(),
            "num_pixels": total,
            "confusion": counts.tolist(),
        }
