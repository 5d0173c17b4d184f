"""The description y of positions, which the appearance term and the merges use: colour, texture, and
the vertical position if the images have it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.local_appearance import local_appearance
from .colours import colour_channels

POSITION_NOISE = 1.0  # variance of the noise of the position, in variances of the position


def colours_and_position(images: Tensor, position: bool) -> tuple[Tensor, Tensor | None]:
    """The `colour_channels` of images [B, c, H, W], and the position of their pixels, [B, 1, H, W],
    if it is the last channel. None: it is not.
    """
    if not position:
        return colour_channels(images), None
    return colour_channels(images[:, :-1]), images[:, -1:]


def description(images: Tensor, position: Tensor | None, size: tuple[int, int], backend: str = "auto") -> Tensor:
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
