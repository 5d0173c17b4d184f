"""The colours of images with many bands, for the appearance term and the refinement."""

import itertools

import torch
from torch import Tensor

MAX_COLOURS = 8


def colour_channels(images: Tensor) -> Tensor:
    """The images [B, c, H, W], or means of their neighbouring bands, at most MAX_COLOURS channels.

    A normal density of c bands has c (c + 1) / 2 second moments, too many for few positions, and
    the refinement computes c residuals of 2 c numbers at every pixel. Neighbouring bands of a
    sensor are alike. A mean of bands is an intensity in [0, 1], so that a change of illumination
    shifts its logarithm. A principal component is not. The network gets every band.
    """
    c = images.shape[1]
    if c <= MAX_COLOURS:
        return images
    ends = [c * i // MAX_COLOURS for i in range(MAX_COLOURS + 1)]
    return torch.stack([images[:, a:b].mean(dim=1) for a, b in itertools.pairwise(ends)], dim=1)
