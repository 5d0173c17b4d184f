"""`ClusterMetrics`: streaming scores of a clustering against ground truth, from exact counts."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..distributed.world import rank, ranks
from ..ops.confusion_matrix import add_confusion, as_labels, check_ignored, check_number, check_pair
from .bootstrap import PoissonBootstrap, accuracies_of
from .matching import check_method, match_clusters


def normalized_mutual_information(counts: np.ndarray) -> float:
    """I(cluster; class) / mean of both entropies, from joint counts. 0 if both entropies are 0."""
    joint = counts / counts.sum()

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    both = entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0))
    return max(0.0, both - entropy(joint.ravel())) / (both / 2) if both > 0 else 0.0


class ClusterMetrics:
    """Scores of a segmentation into unnamed clusters over any number of images.

    Memory does not depend on the number of images. Counts are int64 sums over all positions.
    Clusters are matched to classes once, over all positions. On a GPU, `update` does not wait for
    the device: it counts labels out of range, and `compute` raises if there were any. A metric may
    be made, reset and updated under `torch.inference_mode()` and used outside it.

    Args:
        num_clusters, num_classes: rows and columns of the counts.
        ignore_index: target value that does not count. None: all values count.
        method: matching of clusters to classes, see `match_clusters`.
        bootstrap: number of replicates of a Poisson bootstrap over images, for a confidence
            interval of the accuracy (1,000 is usual). 0 disables it.
        seed: seed of the bootstrap.

    Raises:
        TypeError, ValueError: an argument is out of range.
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
        check_number(num_clusters, "num_clusters")
        check_number(num_classes, "num_classes")
        check_number(bootstrap, "bootstrap", least=0)
        check_number(seed, "seed", least=0)
        check_ignored(ignore_index)
        check_method(method)
        self.num_clusters, self.num_classes = num_clusters, num_classes
        self.ignore_index, self.method = ignore_index, method
        self.num_replicates, self.seed = bootstrap, seed
        self.reset()

    # Tensors made in inference mode cannot be changed in place outside it.
    @torch.inference_mode(False)
    def reset(self) -> None:
        """Forget all counts."""
        self._counts = torch.zeros(self.num_clusters, self.num_classes, dtype=torch.int64, device="cpu")
        self._outside = torch.zeros((), dtype=torch.int64, device="cpu")
        self._bootstrap = None
        if self.num_replicates:
            self._bootstrap = PoissonBootstrap(
                self.num_replicates, self.num_clusters, self.num_classes, self.seed, rank()
            )
        # The sums over all processes at the last `sync`. `_parts` has this process's counts since.
        self._summed = [torch.zeros_like(part) for part in self._parts()]

    def _parts(self) -> list[Tensor]:
        return [self._counts, self._outside, *([self._bootstrap.counts] if self._bootstrap else [])]

    def _total(self, part: int) -> Tensor:
        return self._parts()[part].cpu() + self._summed[part]

    @property
    def counts(self) -> Tensor:
        """All counts, int64 [num_clusters, num_classes] on the CPU. After `sync`, of all processes."""
        return self._total(0)

    def update(self, pred: ArrayLike | Tensor, target: ArrayLike | Tensor) -> None:
        """Count a label map [H, W] or several [B, H, W], in any form that `confusion_matrix` takes.

        Raises:
            TypeError, ValueError: as in `confusion_matrix`. `counts` is then unchanged. With a
                bootstrap the flat index counts within the image that the text names.
        """
        pred = as_labels(pred, "pred", self.num_clusters, "num_clusters")
        target = as_labels(target, "target", self.num_classes, "num_classes")
        if self._bootstrap is None:
            self._to(target.device)
            self._add_outside(add_confusion(self._counts, pred, target, self.ignore_index))
            return
        check_pair(pred, target)
        if pred.dim() < 3:
            pred, target = pred[None], target[None]
        counts = torch.zeros(len(target), self.num_clusters, self.num_classes, dtype=torch.int64, device=target.device)
        for index, (image, labels, truth) in enumerate(zip(counts, pred, target, strict=True)):
            try:
                self._add_outside(add_confusion(image, labels, truth, self.ignore_index))
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from None
        self.add(counts)

    def add(self, counts: ArrayLike | Tensor, outside: Tensor | int | None = None) -> None:
        """Add counts, for example of `segment_and_count`.

        Args:
            counts: integers [num_clusters, num_classes], or one such matrix for each image,
                [images, num_clusters, num_classes]. For the bootstrap a matrix is one image.
            outside: number of pixels out of range that the counts leave out (`segment_and_count`
                with `return_outside`). `compute` raises if there were any.

        Raises:
            ValueError: counts has another shape or dtype, or a negative number on a CPU.
        """
        if not isinstance(counts, Tensor):
            array = np.asarray(counts)
            if array.dtype.kind not in "iu":
                raise ValueError(f"counts must be whole numbers, not {array.dtype}")
            counts = torch.from_numpy(array.astype(np.int64))
        elif counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
            raise ValueError(f"counts must be whole numbers, not {counts.dtype}")
        expected = (self.num_clusters, self.num_classes)
        if counts.shape[-2:] != expected or counts.dim() not in (2, 3):
            raise ValueError(f"counts must be [..., {expected[0]}, {expected[1]}], not {list(counts.shape)}")
        if counts.device.type == "cpu" and (counts < 0).any():
            raise ValueError(f"counts must be at least 0, not {int(counts.min())}")
        if counts.dim() == 2:
            counts = counts[None]
        self._to(counts.device)
        self._counts += counts.sum(dim=0)
        self._add_outside(outside)
        if self._bootstrap is not None:
            self._bootstrap.add(counts)

    def _add_outside(self, outside: Tensor | int | None) -> None:
        if outside is not None:
            self._outside += torch.as_tensor(outside, device=self._outside.device).reshape(())

    def _to(self, device: torch.device) -> None:
        if self._counts.device != device:
            with torch.inference_mode(False):
                self._counts, self._outside = self._counts.to(device), self._outside.to(device)

    def sync(self) -> None:
        """Give every process of torch.distributed's default group the sum of all counts.

        All processes must call it. Counts are summed once, so `update` and `sync` may alternate.
        """
        if ranks() == 1:
            return
        # NCCL sums only on GPUs.
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        for part, summed in zip(self._parts(), self._summed, strict=True):
            whole = part.to(device, copy=True)
            torch.distributed.all_reduce(whole)
            summed += whole.cpu()
            part.zero_()

    def compute(self) -> dict:
        """The scores. If nothing was counted, all ratios are NaN.

        Returns:
            A dict with
            pixel_accuracy: matched / counted positions.
            mean_iou: mean over the classes that occur in the target.
            nmi: normalised mutual information (by the arithmetic mean of the entropies).
            majority_accuracy: accuracy of the constant predictor.
            class_shares: share of each class in the target.
            iou: intersection over union of each class. NaN for a class in neither target nor
                prediction.
            mapping: class of each cluster, -1 for none.
            num_pixels: counted positions.
            confusion: counts, [clusters, classes], as lists.
            accuracy_interval: with a bootstrap, (low, high): the middle 95 % of the replicates'
                accuracies.

        Raises:
            ValueError: labels were out of range on a GPU. (On the CPU `update` raises.)
        """
        outside = int(self._total(1))
        if outside:
            raise ValueError(
                f"{outside} positions had a prediction outside 0 to {self.num_clusters - 1} or a target outside 0 to "
                f"{self.num_classes - 1} (confusion_matrix with check=True gives the place)"
            )
        counts = self.counts.numpy()
        total = int(counts.sum())
        match = match_clusters(counts, self.method)
        classes = counts.sum(axis=0)
        matched = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        np.add.at(matched, match.mapping[match.mapping >= 0], counts[match.mapping >= 0])
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
