"""The baseline `kmeans-backbone`: k-means on the features of a frozen backbone, without training."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import cache_features, frozen_network
from ..data import ImageSet
from ..model import STRIDE, InfoSegNet
from .baselines import PixelMap, required, sampled

POINTS = 40_000  # least number of positions that the clusters are fitted to
STARTS = 5  # number of starts of k-means


def fit_kmeans_backbone(
    images: ImageSet, number: int, seed: int, backbone: str, weights: str | None, local_index: Sequence[int]
) -> PixelMap:
    """Fit `number` clusters to the features of random positions, scaled to length 1.

    Args:
        images: the train split.
        number: number of clusters.
        seed: seed of the positions and of k-means.
        backbone, weights, local_index: as in `infoseg train`.

    Returns:
        A function that maps pixels [B, c, H, W] to labels uint8 [B, H, W]: the argmax of the
        upsampled similarities to the centres.

    Raises:
        DataError: scikit-learn is not installed, the backbone cannot be built, or no pixel has data.
    """
    learn = required("sklearn.cluster", "scikit-learn")
    network = frozen_network(backbone, weights, local_index, images.channels)
    cache_features(network.backbone)  # type: ignore[arg-type]

    def points_of(index: int) -> Tensor:
        pixels, valid = images.read(index)
        maps = features_of(network, images.scaling.to_float(pixels)[None])[0]
        points = maps.flatten(1).T
        if valid is None:
            return points
        inside = F.adaptive_avg_pool2d(torch.from_numpy(valid)[None, None].float(), (maps.shape[1], maps.shape[2]))
        return points[inside.flatten() == 1]

    points = sampled(points_of, images, POINTS, seed).numpy()
    found = learn.KMeans(number, n_init=STARTS, random_state=seed).fit(points)
    centres = torch.from_numpy(found.cluster_centers_.astype(np.float32))
    offset = centres.square().sum(dim=1)[:, None, None]

    def labels(pixels: Tensor) -> Tensor:
        similarity = 2 * torch.einsum("kc,bchw->bkhw", centres, features_of(network, pixels)) - offset
        similarity = F.interpolate(similarity, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        rows, columns = pixels.shape[2:]
        return similarity[:, :, :rows, :columns].argmax(dim=1).to(torch.uint8)

    return labels


@torch.no_grad()
def features_of(network: InfoSegNet, pixels: Tensor) -> Tensor:
    """Local features [B, C, h, w] of length 1."""
    return F.normalize(network(pixels)[0], dim=1)
