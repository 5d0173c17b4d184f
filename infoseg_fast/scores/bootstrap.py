"""A streaming Poisson bootstrap over images: what the scores would be on other samples of images."""

import numpy as np
import torch
from torch import Tensor

from ..ops.linear_sum_assignment import linear_sum_assignment

EXACT = 2**53  # float64 holds every whole number up to here


class PoissonBootstrap:
    """Replicate count matrices, in each of which every image counts Poisson(1) times.

    A bootstrap draws as many images as there are, with replacement; an image is then drawn Binomial(N, 1/N) times,
    which for many images is Poisson(1), without N being known beforehand: so one pass over a stream is enough, and
    memory does not grow with it. The same seed and order of images give the same replicates, however they were grouped
    in calls.

    Args:
        replicates: how many matrices. num_clusters, num_classes: of each. seed: of the weights; processes that count
            different images of one set need different `stream` numbers.
    """

    def __init__(self, replicates: int, num_clusters: int, num_classes: int, seed: int = 0, stream: int = 0) -> None:
        self.generator = np.random.default_rng([seed, stream])
        self.counts = torch.zeros(replicates, num_clusters, num_classes, dtype=torch.int64)

    def add(self, counts: Tensor) -> None:
        """Count images: int64 [images, num_clusters, num_classes]."""
        if not len(counts):
            return
        replicates, *shape = self.counts.shape
        flat = counts.reshape(len(counts), -1)
        weights = torch.from_numpy(self.generator.poisson(1.0, (len(counts), replicates))).to(counts.device)
        self.counts = self.counts.to(counts.device)
        # A product in float64 is a hundred times faster than in int64, and as exact while every sum stays below 2^53.
        # On the CPU that is looked at; elsewhere looking would wait, and the pixels of one call are far fewer.
        if counts.device.type != "cpu" or int(flat.sum()) * int(weights.max()) < EXACT:
            added = (weights.T.double() @ flat.double()).long()
        else:
            added = torch.stack([(w[:, None] * flat).sum(dim=0) for w in weights.T])
        self.counts += added.view(replicates, *shape)


def accuracies_of(counts: Tensor, method: str) -> np.ndarray:
    """Pixel accuracy of each matrix of [replicates, clusters, classes], each with its own matching (see
    `match_clusters` for the methods); NaN for one that counted nothing. All are matched in one call."""
    matrices = counts.cpu().numpy()
    if method == "hungarian":
        rows, cols = linear_sum_assignment(matrices, maximize=True)
        matched = matrices[np.arange(len(matrices))[:, None], rows, cols].sum(axis=1)
    else:
        matched = matrices.max(axis=2).sum(axis=1)
    total = matrices.sum(axis=(1, 2))
    return np.divide(matched, total, out=np.full(len(matrices), np.nan), where=total > 0)
