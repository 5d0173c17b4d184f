"""The number of positions over which probabilities are averaged, chosen by the noise of the images."""

import torch
from torch import Tensor

from ..data import ImageSet
from ..model import STRIDE
from ..ops.local_appearance import local_appearance

AUTO = "auto"
MAX_RADIUS = 4  # positions
SAMPLED_IMAGES = 200
MIN_VARIANCE = 1e-12  # a channel with less variance is constant


def smoothing_radius(setting: int | str, noise_share: float) -> int:
    """The radius in positions. "auto": 1 for images with noise at the scale of a position, else 0."""
    return int(noise_share > 0) if setting == AUTO else int(setting)


def noise_share(images: ImageSet) -> float:
    """The share of noise in the variance of the positions' colours: the part that neighbouring
    positions do not share.

    This is the nugget of the variogram in geostatistics (Matheron, 1963). v(h) is half the mean
    squared difference of positions h apart, in rows and in columns. A line through v(1) and v(2)
    has the value 2 v(1) - v(2) at distance 0. This is the whole variance if positions are
    independent. It is at most 0 if colours change gradually or with objects, even objects of two
    positions. The colour is that of `local_appearance`. The share is the mean over its channels.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    pairs, differences = {1: 0, 2: 0}, {1: torch.zeros(()), 2: torch.zeros(())}
    for index in images.evenly_spread(SAMPLED_IMAGES):
        image = images.scaling.to_float(images.image(index))[None]
        h, w = (max(1, n // STRIDE) for n in image.shape[2:])
        colour = local_appearance(image[:, :, : h * STRIDE, : w * STRIDE], (h, w))[:, : image.shape[1]].double()
        count += h * w
        total, squares = total + colour.sum((0, 2, 3)), squares + colour.square().sum((0, 2, 3))
        for lag in pairs:
            for step in (_steps(colour, lag, 2), _steps(colour, lag, 3)):
                pairs[lag] += step[0, 0].numel()
                differences[lag] = differences[lag] + step.square().sum((0, 2, 3))
    if not pairs[2]:  # images with fewer than three positions a side
        return 0.0
    variance = squares / count - (total / count).square()
    near, far = (differences[lag] / max(2 * pairs[lag], 1) for lag in pairs)
    share = (2 * near - far) / variance.clamp_min(MIN_VARIANCE)
    return torch.where(variance > MIN_VARIANCE, share, 0.0).mean().item()


def _steps(maps: Tensor, lag: int, dim: int) -> Tensor:
    """Differences of values `lag` apart along `dim`. Empty if the map is shorter."""
    n = max(maps.shape[dim] - lag, 0)
    return maps.narrow(dim, maps.shape[dim] - n, n) - maps.narrow(dim, 0, n)
