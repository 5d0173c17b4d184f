"""Colour and texture of positions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .neighbourhood_mean import neighbourhood_mean

DARK = 0.05  # intensity in [0, 1], added before the logarithm: differences in the dark are mostly noise
FLAT = 1e-3  # squared step of the logarithm, added to the trace
FACTORS = 8  # number of channels in a product before its logarithm: more could underflow


def local_appearance(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Logarithms of the channels' means, then the logarithm of the trace and the coherence of the
    structure tensor T.

    T = ((uu, uv), (uv, vv)) has means over 3 x 3 cells of the products of u and v, the steps of the
    logarithmic brightness along the diagonals of 2 x 2 pixels. The sum of its eigenvalues is uu +
    vv, their difference sqrt((uu - vv)^2 + (2 uv)^2). The coherence is the quotient. (Steps to the
    right and down would share a pixel, and white noise would have a direction.)
    """
    images = images.float()
    colour = (F.adaptive_avg_pool2d(images, size) + DARK).log()
    # The sum of the channels' logarithms is the logarithm of their product.
    products = [part.prod(dim=1, keepdim=True).log() for part in (images + DARK).split(FACTORS, dim=1)]
    brightness = sum(products[1:], products[0]) / images.shape[1]
    u = brightness[..., 1:, 1:] - brightness[..., :-1, :-1]
    v = brightness[..., :-1, 1:] - brightness[..., 1:, :-1]
    tensor = F.pad(torch.cat([u.square() + v.square(), u.square() - v.square(), 2 * u * v], dim=1), (0, 1, 0, 1))
    trace, difference, twice_uv = neighbourhood_mean(F.adaptive_avg_pool2d(tensor, size), 1).split(1, dim=1)
    coherence = (difference.square() + twice_uv.square()).sqrt() / (trace + FLAT)
    return torch.cat([colour, (trace + FLAT).log(), coherence], dim=1)
