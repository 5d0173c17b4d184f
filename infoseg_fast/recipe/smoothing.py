"""The number of positions over which probabilities are averaged, decided from the images alone."""

import numpy as np
import torch
from torch import Tensor

from ..data import ImageSet
from ..model import STRIDE
from ..ops.local_appearance import local_appearance

AUTO = "auto"
MAX_RADIUS = 4  # positions
SAMPLED_IMAGES = 200
LEAST_VARIANCE = 1e-12  # a channel of less variance is constant


def smoothing_radius(setting: int | str, noise_share: float) -> int:
    """The radius in positions. "auto": 1 for images that are noisy at the scale of a position, else
    0.
    """
    return int(noise_share > 0) if setting == AUTO else int(setting)


def noise_share(images: ImageSet) -> float:
    """The share of the variance of the positions' colours that no position shares with its
    neighbour.

    This is the nugget of the variogram in geostatistics (Matheron, 1963). v(h) is half the mean
    squared difference of positions h apart, in rows and in columns. A line through v(1) and v(2)
    leaves 2 v(1) - v(2) at distance 0. It is all of the variance where positions are independent,
    and at most 0 where colours change gradually or with objects, even objects of two positions. The
    colour is that of `local_appearance`. The share is the mean over its channels.
    """
    number = min(SAMPLED_IMAGES, len(images))
    chosen = np.unique(np.linspace(0, len(images) - 1, number).round().astype(int))
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    pairs, differences = {1: 0, 2: 0}, {1: torch.zeros(()), 2: torch.zeros(())}
    for index in chosen:
        image = images.scaling.to_float(images.image(int(index)))[None]
        h, w = (max(1, n // STRIDE) for n in image.shape[2:])
        colour = local_appearance(image[:, :, : h * STRIDE, : w * STRIDE], (h, w))[:, : image.shape[1]].double()
        count += h * w
        total, squares = total + colour.sum((0, 2, 3)), squares + colour.square().sum((0, 2, 3))
        for lag in pairs:
            for step in (_steps(colour, lag, 2), _steps(colour, lag, 3)):
                pairs[lag] += step[0, 0].numel()
                differences[lag] = differences[lag] + step.square().sum((0, 2, 3))
    if not pairs[2]:  # images of less than three positions a side
        return 0.0
    variance = squares / count - (total / count).square()
    near, far = (differences[lag] / max(2 * pairs[lag], 1) for lag in pairs)
    share = (2 * near - far) / variance.clamp_min(LEAST_VARIANCE)
    return torch.where(variance > LEAST_VARIANCE, share, 0.0).mean().item()


def _steps(maps: Tensor, lag: int, dim: int) -> Tensor:
    """Differences of numbers `lag` apart along `dim`; empty where the map is shorter."""
    n = max(maps.shape[dim] - lag, 0)
    return maps.narrow(dim, maps.shape[dim] - n, n) - maps.narrow(dim, 0, n)
