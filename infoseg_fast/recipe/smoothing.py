"""Over how many positions the default recipe averages probabilities: decided from the images alone."""

import numpy as np
import torch
from torch import Tensor

from ..data import ImageSet
from ..data.base import to_float
from ..model import STRIDE
from .appearance import local_appearance


def smoothing_radius(images: ImageSet) -> int:
    """1 for images that are grainy at the scale of a position, else 0."""
    return int(grain(images) > 0)


def grain(images: ImageSet, limit: int = 200) -> float:
    """The share of the variance of the positions' colours that no position shares with the next: noise, not objects.

    What geostatistics (Matheron, 1963) calls the nugget of the variogram: with v(h) half the mean squared difference
    of positions h apart, in rows and in columns, 2 v(1) - v(2) is what a line through both leaves at distance 0. It is
    all of the variance where positions are independent, and at most 0 where they change gradually or with the objects
    they belong to, be these as small as two positions. The colour is that of `local_appearance`; the mean over its
    channels, and over at most `limit` images spread evenly over the set.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int))
    count, total, squares, pairs = 0, 0.0, 0.0, {1: 0, 2: 0}
    differences = {1: 0.0, 2: 0.0}
    for index in chosen:
        image = to_float(images.image(int(index)))[None]
        size = [max(1, n // STRIDE) for n in image.shape[2:]]
        whole = image[:, :, : size[0] * STRIDE, : size[1] * STRIDE]
        colour = local_appearance(whole, size)[:, : image.shape[1]].double()
        count += size[0] * size[1]
        total, squares = total + colour.sum((0, 2, 3)), squares + colour.square().sum((0, 2, 3))
        for lag in pairs:
            for step in (_steps(colour, lag, 2), _steps(colour, lag, 3)):
                pairs[lag] += step[0, 0].numel()
                differences[lag] = differences[lag] + step.square().sum((0, 2, 3))
    variance = squares / count - (total / count).square()
    near, far = (differences[lag] / max(2 * pairs[lag], 1) for lag in pairs)
    # A constant channel has no grain, and images of less than three positions a side do not tell.
    if not pairs[2]:
        return 0.0
    return torch.where(variance > 1e-12, (2 * near - far) / variance.clamp_min(1e-12), 0.0).mean().item()


def _steps(maps: Tensor, lag: int, dim: int) -> Tensor:
    """Differences of numbers `lag` apart; none where there are no such."""
    n = max(maps.shape[dim] - lag, 0)
    return maps.narrow(dim, maps.shape[dim] - n, n) - maps.narrow(dim, 0, n)
