"""The colours of images with many bands, for the appearance term and the refinement."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.local_appearance import local_appearance

MAX_COLOURS = 8
POSITION_NOISE = 1.0  # variance of the noise of the position, in variances of the position


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


def with_colours(images: Tensor, position: bool) -> tuple[Tensor, Tensor | None]:
    """What the appearance term gets of images [B, c, H, W]: their `colour_channels`, and the
    position of their pixels, [B, 1, H, W], if it is the last channel.
    """
    if not position:
        return colour_channels(images), None
    return colour_channels(images[:, :-1]), images[:, -1:]


def described(images: Tensor, position: Tensor | None, size: tuple[int, int], backend: str = "auto") -> Tensor:
    """`local_appearance` of the images, [B, d, h, w], with the mean position as a further channel,
    if it is given.
    """
    appearance = local_appearance(images, size, backend=backend)
    return appearance if position is None else torch.cat([appearance, F.adaptive_avg_pool2d(position, size)], dim=1)


def with_position_noise(moments: Tensor, dim: int) -> Tensor:
    """Sums of `appearance_statistics` along dimension `dim` after independent noise of variance
    POSITION_NOISE is added to the last channel of y, which is the position.

    The position alone then gives a class at most 1/2 log 2 nats. Without noise the classes divide
    the images into strips.
    """
    last = moments.shape[dim] - 1
    noisy = moments.narrow(dim, last, 1) + POSITION_NOISE * moments.narrow(dim, 0, 1)
    return torch.cat([moments.narrow(dim, 0, last), noisy], dim=dim)
