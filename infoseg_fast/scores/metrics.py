"""`ClusterMetrics`: streaming scores of a clustering against ground truth, from one matrix of exact counts."""

import numpy as np
import torch
from torch import Tensor

from ..ops.confusion_matrix import add_confusion, as_labels
from .bootstrap import PoissonBootstrap, accuracies_of
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

    Counts are int64 over all positions seen; clusters are matched to classes once, over all of them. On a GPU an update
    waits for nothing; labels out of range are counted aside there, and `compute` raises.

    Args:
        num_clusters, num_classes: rows and columns of the counts.
        ignore_index: target value that is left out; None counts all.
        method: how clusters are matched, see `match_clusters`.
        bootstrap: replicates of a Poisson bootstrap over images, from which `compute` gives a confidence interval of
            the accuracy (1,000 is usual); 0 for none. seed: of its weights.
    """

    def __init__(
        self,
        num_clusters: int,
        num_classes: int,
        ignore_index: int | None = 255,
        method: str = "hungarian",
        *,
        bootstrap: int = 0,
        seed: int = 0,
    ) -> None:
        self.num_clusters, self.num_classes = num_clusters, num_classes
        self.ignore_index, self.method = ignore_index, method
        self.num_replicates, self.seed = bootstrap, seed
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self._counts = torch.zeros(self.num_clusters, self.num_classes, dtype=torch.int64)
        self._outside = torch.zeros((), dtype=torch.int64)
        self._bootstrap = None
        if self.num_replicates:
            self._bootstrap = PoissonBootstrap(
                self.num_replicates, self.num_clusters, self.num_classes, self.seed, _process()[0]
            )
        # What all processes had counted by the last `sync`; the above is what this one has counted since.
        self._summed = [torch.zeros_like(part) for part in self._parts()]

    def _parts(self) -> list[Tensor]:
        return [self._counts, self._outside, *([self._bootstrap.counts] if self._bootstrap else [])]

    def _total(self, part: int) -> Tensor:
        return self._parts()[part].cpu() + self._summed[part]

    @property
    def counts(self) -> Tensor:
        """int64 [num_clusters, num_classes] on the CPU: all that was counted; after `sync`, by all processes."""
        return self._total(0)

    def update(self, pred: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Count one label map [H, W] or several [B, H, W]; `pred` and `target` as in `confusion_matrix`."""
        pred = as_labels(pred, "pred", self.num_clusters, "num_clusters")
        target = as_labels(target, "target", self.num_classes, "num_classes")
        if self._bootstrap is None:
            self._to(target.device)
            self._add_labels(self._counts, pred, target)
            return
        if pred.dim() < 3:
            pred, target = pred[None], target[None]
        counts = torch.zeros(len(target), self.num_clusters, self.num_classes, dtype=torch.int64, device=target.device)
        for image, labels, truth in zip(counts, pred, target, strict=True):
            self._add_labels(image, labels, truth)
        self.add(counts)

    def _add_labels(self, counts: Tensor, pred: Tensor, target: Tensor) -> None:
        self._add_outside(add_confusion(counts, pred, target, self.ignore_index))

    def _add_outside(self, outside: Tensor | int | None) -> None:
        if outside is not None:
            self._outside = self._outside.to(torch.as_tensor(outside).device) + outside

    def add(self, counts: Tensor | np.ndarray, outside: Tensor | int | None = None) -> None:
        """Add counts made elsewhere (`segment_and_count`): int64 [num_clusters, num_classes], or one such matrix for
        each image, [images, num_clusters, num_classes], which a bootstrap wants (it takes one matrix for one image).

        outside: pixels out of range that were left out of them (`segment_and_count` with `return_outside`); `compute`
        raises if there were any.
        """
        counts = torch.as_tensor(counts)
        expected = (self.num_clusters, self.num_classes)
        if counts.shape[-2:] != expected or counts.dim() not in (2, 3):
            raise ValueError(f"counts must be [..., {expected[0]}, {expected[1]}], not {list(counts.shape)}")
        if counts.dim() == 2:
            counts = counts[None]
        self._to(counts.device)
        self._counts += counts.sum(dim=0)
        self._add_outside(outside)
        if self._bootstrap is not None:
            self._bootstrap.add(counts)

    def _to(self, device: torch.device) -> None:
        if self._counts.device != device:
            self._counts = self._counts.to(device)

    def sync(self) -> None:
        """Give every process of torch.distributed's default group the sum of all counts. To be called by all of them.

        What was summed once is not summed again, so `update` and `sync` may go on in turns.
        """
        if _process()[1] == 1:
            return
        # NCCL sums on GPUs only, Gloo on the CPU as well.
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        for part, summed in zip(self._parts(), self._summed, strict=True):
            whole = part.to(device, copy=True)
            torch.distributed.all_reduce(whole)
            summed += whole.cpu()
            part.zero_()

    def compute(self) -> dict:
        """The scores; without any counted position all ratios are NaN.

        Returns:
            pixel_accuracy: matched / counted. mean_iou: over the classes that occur in the target. nmi: normalised
            mutual information (arithmetic mean). majority_accuracy: of the constant predictor. class_shares: of each
            class in the target. iou: of each class, NaN for one that occurs neither in the target nor the prediction.
            mapping: class of each cluster, -1 for none. num_pixels: counted. confusion: int64 [clusters, classes].
            With a bootstrap also accuracy_interval: (low, high), the middle 95 % of the replicates' accuracies.

        Raises:
            ValueError: on a GPU, labels were out of range (on the CPU `update` has raised already).
        """
        outside = int(self._total(1))
        if outside:
            raise ValueError(
                f"{outside} positions had a prediction outside 0 to {self.num_clusters - 1} or a target outside 0 to "
                f"{self.num_classes - 1} (confusion_matrix with check=True says where)"
            )
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
        scores: dict = {
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
        if self._bootstrap is not None:
            accuracies = accuracies_of(self._total(2), self.method)
            accuracies = accuracies[~np.isnan(accuracies)]
            low, high = np.quantile(accuracies, [0.025, 0.975]).tolist() if len(accuracies) else (nan, nan)
            scores["accuracy_interval"] = (low, high)
        return scores


def _process() -> tuple[int, int]:
    """This process's rank in torch.distributed's default group, and the group's size."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
