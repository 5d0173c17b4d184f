"""Refinement at the pixels: labels that follow edges of colour, by Bayes' rule.

The label of a position is the label of a cell of 4 x 4 pixels, and a network that sees few pixels
is uncertain along every edge. So the probabilities of the positions are the prior of a pixel's
class, and

    p(k | y, s) ~ prior_k p(y | s, k)

with y the colour of the pixel and s the colour of its surroundings. p(y | s, k) is the conditional
density of a normal distribution of (y, s). Its moments are sums over the sample, weighted with
the probabilities of class k: no label is used. s is a condition and no evidence, because light
and texture vary over a region: only the network decides between regions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.refined_labels import refined_labels
from ..reference import moments_of, neighbourhood_mean
from ..reference.local_appearance import DARK
from ..reference.refined_labels import batch_scores
from .appearance import RESOLUTION
from .colours import colour_channels

SURROUNDINGS_RADIUS = 5  # positions over which the colour of the surroundings is averaged, each way
MIN_DEVIATION = 0.03  # least standard deviation of a logarithm of a channel: ten steps of 8 bits
PRIOR_SHARE = 1e-3  # share of the moments of all classes in each class, for classes without any pixel
REACH = 2  # positions each way that the prior of a pixel depends on: one of `spread`, one of the upsampling


class Refinement(NamedTuple):
    """The density of the pixels' colours in each class.

    Attributes:
        residual: [K, c, 2c + 1], maps (y, s, 1) to R_k (y - E[y | s, k]) of unit covariance.
        log_scale: [K], log det R_k. log p(y | s, k) = log_scale - 1/2 |residual (y, s, 1)|^2 +
            const.
        radius: y is the mean over 2 radius + 1 pixels a side.
    """

    residual: Tensor
    log_scale: Tensor
    radius: int

    def to(self, device: torch.device | str) -> Refinement:
        """The refinement on a device."""
        return self._replace(residual=self.residual.to(device), log_scale=self.log_scale.to(device))

    def labels(self, probs: Tensor, colours: Colours) -> Tensor:
        """argmax_k p(k | y, s) of the pixels, [B, H, W] uint8. A tie gives the lowest class.

        Args:
            probs: [B, K, h, w], probabilities of the positions.
            colours: colours of the pixels that the positions cover.
        """
        return refined_labels(spread(probs), *colours, self.residual, self.log_scale)

    def scores(self, probs: Tensor, colours: Colours) -> Tensor:
        """log p(k | y, s) of the pixels up to a constant, [B, K, H, W]. Arguments as in `labels`."""
        return batch_scores(spread(probs), *colours, self.residual, self.log_scale)


class Colours(NamedTuple):
    """Logarithms of the channels: y [B, c, H, W] of the pixels, s [B, c, h, w] around the
    positions.
    """

    pixels: Tensor
    around: Tensor


def colours_of(images: Tensor, size: tuple[int, int], radius: int, mask: Tensor | None = None) -> Colours:
    """The colours of images.

    Args:
        images: float [B, c, H, W] in [0, 1], with any number of channels (`colour_channels`).
        size: (h, w) of the positions that cover them. s is the mean over 2 SURROUNDINGS_RADIUS + 1
            positions a side.
        radius: y is the mean over 2 radius + 1 pixels a side.
        mask: bool [B, h, w], the positions that count in s. s is the mean over all positions if
            none of them counts. None: all count.
    """
    images = colour_channels(images.float())
    cells = log_colours(F.adaptive_avg_pool2d(images, size))
    around = neighbourhood_mean(cells, SURROUNDINGS_RADIUS)
    if mask is not None:
        share = neighbourhood_mean(mask[:, None].float(), SURROUNDINGS_RADIUS)
        counted = neighbourhood_mean(cells * mask[:, None], SURROUNDINGS_RADIUS) / share
        around = torch.where(share > 0, counted, around)
    return Colours(log_colours(neighbourhood_mean(images, radius)), around)


def log_colours(images: Tensor) -> Tensor:
    """The logarithm of intensities in [0, 1]. A change of illumination shifts it."""
    return (images + DARK).log()


def spread(probs: Tensor) -> Tensor:
    """Means of the probabilities over 3 x 3 positions with the weights (1 2 1) / 4 along each axis,
    float32 [B, K, h, w].

    Computed by sums, since a GPU may round the factors of a convolution.
    """
    probs = F.pad(probs.float(), (1, 1, 1, 1), mode="replicate")
    for dim in (2, 3):
        before, here, after = (probs.narrow(dim, i, probs.shape[dim] - 2) for i in range(3))
        probs = (before + after) / 4 + here / 2
    return probs


@torch.no_grad()
def colour_moments(probs: Tensor, images: Tensor, mask: Tensor | None, radius: int) -> Tensor:
    """Moments of (1, y, s) over the pixels of each class. A pixel has the probabilities of its
    position.

    Args:
        probs: [B, K, h, w], probabilities of the positions.
        images: float [B, c, H, W] in [0, 1].
        mask: bool [B, h, w], the positions that count. None: all count.
        radius: as in `colours_of`.

    Returns:
        [K, 2c + 1, 2c + 1] float64. The moments of several batches add up.
    """
    pixels, around = colours_of(images, probs.shape[2:], radius, mask)
    around = F.interpolate(around, size=pixels.shape[2:], mode="bilinear", align_corners=False)
    u = torch.cat([torch.ones_like(pixels[:, :1]), pixels, around], dim=1)
    n = u.shape[1]
    row, column = torch.triu_indices(n, n, device=u.device)
    products = [F.adaptive_avg_pool2d(u[:, i : i + 1] * u[:, i:], probs.shape[2:]) for i in range(n)]
    if mask is not None:
        probs = probs * mask[:, None]
    sums = moments_of(probs.double(), torch.cat(products, dim=1))
    moments = sums.new_empty(len(sums), n, n)
    moments[:, row, column] = moments[:, column, row] = sums
    return moments


def refinement_of(moments: Tensor, radius: int) -> Refinement:
    """The refinement with normal distributions of these moments.

    Differences below RESOLUTION standard deviations of all pixels do not count, as in the
    appearance term.

    Args:
        moments: result of `colour_moments`.
        radius: as in `colours_of`.
    """
    total = moments.sum(dim=0)
    moments = moments + PRIOR_SHARE * total
    mean = moments[:, 0, 1:] / moments[:, :1, 0]
    covariance = moments[:, 1:, 1:] / moments[:, :1, :1] - mean[:, :, None] * mean[:, None]
    c = mean.shape[1] // 2
    centre = total[0, 1:] / total[0, 0]
    variance = (total[1:, 1:].diagonal() / total[0, 0] - centre.square()).clamp_min(MIN_DEVIATION**2)
    covariance = covariance + torch.diag(RESOLUTION**2 * variance)
    # E[y | s] = mean_y + slope (s - mean_s), and the covariance of y given s.
    slope = torch.linalg.solve(covariance[:, c:, c:], covariance[:, c:, :c]).mT
    conditional = covariance[:, :c, :c] - slope @ covariance[:, c:, :c]
    root = torch.linalg.cholesky((conditional + conditional.mT) / 2)
    offset = (slope @ mean[:, c:, None])[..., 0] - mean[:, :c]
    expected = torch.cat(
        [torch.eye(c, dtype=slope.dtype, device=slope.device).expand_as(slope), -slope, offset[..., None]], dim=2
    )
    residual = torch.linalg.solve_triangular(root, expected, upper=False)
    log_scale = -root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return Refinement(residual.float(), log_scale.float(), radius)
