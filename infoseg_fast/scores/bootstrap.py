"""A streaming Poisson bootstrap over images, for a confidence interval of the accuracy."""

import numpy as np
import torch
from torch import Tensor

from ..ops.linear_sum_assignment import linear_sum_assignment

MAX_EXACT = 2**53  # float64 holds every whole number up to this one


class PoissonBootstrap:
    """Count matrices of bootstrap replicates: each replicate counts every image Poisson(1) times.

    A bootstrap sample draws N of N images with replacement, so it contains an image Binomial(N,
    1/N) times. For large N this is Poisson(1), which does not depend on N: one pass over a stream
    is enough, and memory does not grow with N. The same seed and order of images give the same
    replicates, however the images are grouped into calls.

    Args:
        replicates: number of matrices.
        num_clusters, num_classes: size of each matrix.
        seed: seed of the weights.
        stream: number of the stream. Processes that count different images of one set need
            different numbers.
    """

    def __init__(self, replicates: int, num_clusters: int, num_classes: int, seed: int = 0, stream: int = 0) -> None:
        self.generator = np.random.default_rng([seed, stream])
        self.counts = torch.zeros(replicates, num_clusters, num_classes, dtype=torch.int64, device="cpu")

    def add(self, counts: Tensor) -> None:
        """Add the counts of images, int64 [images, num_clusters, num_classes]."""
        if not len(counts):
            return
        replicates, *shape = self.counts.shape
        flat = counts.reshape(len(counts), -1)
        weights = torch.from_numpy(self.generator.poisson(1.0, (len(counts), replicates))).to(counts.device)
        if self.counts.device != counts.device:
            with torch.inference_mode(False):
                self.counts = self.counts.to(counts.device)
        # A product in float64 is a hundred times faster than in int64, and exact while all sums are
        # below 2^53. On other devices the check would wait, and a call counts far fewer pixels.
        if counts.device.type != "cpu" or int(flat.sum()) * int(weights.max()) < MAX_EXACT:
            added = (weights.T.double() @ flat.double()).long()
        else:
            added = torch.stack([(w[:, None] * flat).sum(dim=0) for w in weights.T])
        self.counts += added.view(replicates, *shape)


def accuracies_of(counts: Tensor, method: str) -> np.ndarray:
    """Pixel accuracy of each matrix of counts [replicates, clusters, classes], float64
    [replicates]. NaN for a matrix without counts. `match_clusters` describes the methods.
    """
    matrices = counts.cpu().numpy()
    if method == "hungarian":
        rows, cols = linear_sum_assignment(matrices, maximize=True)
        matched = matrices[np.arange(len(matrices))[:, None], rows, cols].sum(axis=1)
    else:
        matched = matrices.max(axis=2).sum(axis=1)
    total = matrices.sum(axis=(1, 2))
    return np.divide(matched, total, out=np.full(len(matrices), np.nan), where=total > 0)
