"""Over how many positions the default recipe averages probabilities: decided from the images alone."""

import numpy as np
import torch

from .appearance import local_appearance
from .data import ImageSet
from .data.base import to_float
from .model import STRIDE
from .reference import neighbourhood_mean

# From this grain on, classes are looked for in the mean of 3 x 3 positions. The sets that it was set between have .04
# (landcover, better without) and .10 (dubai64, better with); docs/recipe.md.
GRAINY = 0.06


def smoothing_radius(images: ImageSet) -> int:
    """1 for images that are grainy at the scale of a position, else 0."""
    return int(grain(images) > GRAINY)


def grain(images: ImageSet, limit: int = 200) -> float:
    """The share of the variance of the colour of positions that lies within neighbourhoods of 3 x 3 positions.

    Near 0 where every position looks like those around it, near 8/9 where they are independent. The colour is that of
    `local_appearance`; the mean over its channels, and over at most `limit` images spread evenly over the set.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int))
    count, total, squares, fine = 0, 0.0, 0.0, 0.0
    for index in chosen:
        image = to_float(images.image(int(index)))[None]
        size = [max(1, n // STRIDE) for n in image.shape[2:]]
        whole = image[:, :, : size[0] * STRIDE, : size[1] * STRIDE]
        colour = local_appearance(whole, size)[:, : image.shape[1]].double()
        count += size[0] * size[1]
        total, squares = total + colour.sum((0, 2, 3)), squares + colour.square().sum((0, 2, 3))
        fine = fine + (colour - neighbourhood_mean(colour, 1)).square().sum((0, 2, 3))
    variance = squares / count - (total / count).square()
    # A constant channel has no grain.
    return torch.where(variance > 1e-12, fine / count / variance.clamp_min(1e-12), 0.0).mean().item()
