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
MIN_OBJECT = 5  # positions; averages over 3 x 3 positions would remove smaller objects


def smoothing_radius(setting: int | str, noise_share: float) -> int:
    """The radius in positions. "auto": 1 for images with noise at the scale of a position, else 0."""
    return int(noise_share > 0) if setting == AUTO else int(setting)


def noise_share(images: ImageSet) -> float:
    """The share of noise in the variance of the positions' colours, about 0 to 1: the part that
    neighbouring positions do not share. 0 if averages over 3 x 3 positions would remove objects.

    This is the nugget of the variogram in geostatistics (Matheron, 1963). v(h) is half the mean
    squared difference of positions h apart, in rows and in columns. A line through v(1) and v(2)
    has the value 2 v(1) - v(2) at distance 0. This is the whole variance if positions are
    independent. It is at most 0 if colours change gradually or with large objects.

    The slope of the line is the share of neighbours with an edge between them, so its inverse is
    the size of what the images show. Noise does not change it. Where the size is below MIN_OBJECT,
    the images show small objects, or regions of a coarse texture: there the texture changes more
    slowly than the colour. `local_appearance` defines colour and texture. Each share is a mean
    over channels.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    pairs, differences = {1: 0, 2: 0}, {1: torch.zeros(()), 2: torch.zeros(())}
    for index in images.evenly_spread(SAMPLED_IMAGES):
        image = images.scaling.to_float(images.image(index))[None]
        h, w = (max(1, n // STRIDE) for n in image.shape[2:])
        seen = local_appearance(image[:, :, : h * STRIDE, : w * STRIDE], (h, w)).double()
        count += h * w
        total, squares = total + seen.sum((0, 2, 3)), squares + seen.square().sum((0, 2, 3))
        for lag in pairs:
            for step in (_steps(seen, lag, 2), _steps(seen, lag, 3)):
                pairs[lag] += step[0, 0].numel()
                differences[lag] = differences[lag] + step.square().sum((0, 2, 3))
    if not pairs[2]:  # images with fewer than three positions a side
        return 0.0
    variance = squares / count - (total / count).square()
    near, far = (
        torch.where(
            variance > MIN_VARIANCE, differences[lag] / (2 * pairs[lag] * variance.clamp_min(MIN_VARIANCE)), 0.0
        )
        for lag in pairs
    )
    nugget, slope = 2 * near - far, far - near
    colour, texture = slice(images.channels), slice(images.channels, None)
    small = slope[colour].mean() * MIN_OBJECT > 1 and slope[texture].mean() > slope[colour].mean()
    return 0.0 if small else nugget[colour].mean().item()


def _steps(maps: Tensor, lag: int, dim: int) -> Tensor:
    """Differences of values `lag` apart along `dim`. Empty if the map is shorter."""
    n = max(maps.shape[dim] - lag, 0)
    return maps.narrow(dim, maps.shape[dim] - n, n) - maps.narrow(dim, 0, n)
