"""The colours that the appearance term and the refinement see of images of many bands."""

import itertools

import torch
from torch import Tensor

MAX_COLOURS = 8


def colour_channels(images: Tensor) -> Tensor:
    """[B, c, H, W] of at most MAX_COLOURS channels: the images, or the means of neighbouring bands.

    A normal density of c bands has c (c + 1) / 2 moments, which few positions do not tell apart,
    and the refinement computes c residuals of 2 c numbers at every pixel. Neighbouring bands of a
    sensor are alike. A mean of bands is still an intensity in [0, 1], of which a change of
    illumination shifts the logarithm; a principal component is not. The network sees every band.
    """
    c = images.shape[1]
    if c <= MAX_COLOURS:
        return images
    ends = [c * i // MAX_COLOURS for i in range(MAX_COLOURS + 1)]
    return torch.stack([images[:, a:b].mean(dim=1) for a, b in itertools.pairwise(ends)], dim=1)
