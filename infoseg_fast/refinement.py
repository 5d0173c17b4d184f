"""Labels at the pixels: which class a pixel's colour speaks for, given the colours around it.

A position's class is that of a cell of 4 x 4 pixels, and a network that sees 7 is unsure along every edge. So the
classes that a pixel and its neighbours may have, by the probabilities of the positions, are a prior, and Bayes' rule

    p(k | y, s) ~ prior_k p(y | s, k)

decides between them, with y the colour of the pixel and s that of its surroundings. p(y | s, k) is the conditional
density of a normal distribution of (y, s) whose moments are those of class k over training images, weighted with its
probabilities: no label is used. That s is given, not part of what is told, leaves to the network what regions are:
where light or texture varies over a region, colour says little of its class, and y then tells little beside s.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .appearance import RESOLUTION
from .reference import neighbourhood_mean
from .reference.appearance import DARK
from .reference.similarity import moments_of

SURROUNDINGS = 5  # positions each way over which the surroundings' colour is averaged
FLOOR = 1e-6  # the least probability of a class, of a prior
SHARE = 1e-3  # every class has this share of the moments of all: one that is nowhere looks like everything
CHUNK = 2**14  # pixels worked on at a time
SPREAD = (0.25, 0.5, 0.25)  # of a position's probabilities over its neighbours, along each axis


class Refinement(NamedTuple):
    """What the pixels of each class look like, given their surroundings, and how they are looked at.

    residual [K, c, 2c + 1] takes (y, s, 1) to R_k (y - E[y | s, k]), of unit covariance; log_scale [K] is log det R_k:
    log p(y | s, k) = log_scale - 1/2 |residual|^2 + const. radius: y is the mean over 2 radius + 1 pixels each way.
    """

    residual: Tensor
    log_scale: Tensor
    radius: int

    def to(self, device: torch.device | str) -> "Refinement":
        return Refinement(self.residual.to(device), self.log_scale.to(device), self.radius)


def colours(images: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """(y, s) of every pixel: logarithms of the channels, and those of the cells of a map of `size`, averaged over
    2 SURROUNDINGS + 1 cells each way and upsampled. Images float [B, c, H, W] in [0, 1] -> [B, 2c, H, W] float32.
    """
    images = images.float()
    cells = neighbourhood_mean((F.adaptive_avg_pool2d(images, size) + DARK).log(), SURROUNDINGS)
    around = F.interpolate(cells, size=images.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([(neighbourhood_mean(images, radius) + DARK).log(), around], dim=1)


@torch.no_grad()
def class_colours(probs: Tensor, images: Tensor, mask: Tensor | None, radius: int) -> Tensor:
    """Moments of (1, y, s) of the pixels of each class, a pixel having its position's probabilities.

    Args:
        probs: V [B, K, h, w]. images: float [B, c, H, W] in [0, 1], which the positions cover.
        mask: bool [B, h, w]; only positions where it holds count.

    Returns:
        [K, 2c + 1, 2c + 1] float64, which batches may add up.
    """
    u = colours(images, probs.shape[2:], radius)
    u = torch.cat([torch.ones_like(u[:, :1]), u], dim=1)
    n = u.shape[1]
    row, column = torch.triu_indices(n, n, device=u.device)
    products = [F.adaptive_avg_pool2d(u[:, i : i + 1] * u[:, i:], probs.shape[2:]) for i in range(n)]
    if mask is not None:
        probs = probs * mask[:, None]
    sums = moments_of(probs.double(), torch.cat(products, dim=1))
    moments = sums.new_empty(len(sums), n, n)
    moments[:, row, column] = moments[:, column, row] = sums
    return moments


def fitted(moments: Tensor, radius: int) -> Refinement:
    """The conditional densities of normal distributions with these moments, from `class_colours`.

    RESOLUTION, in standard deviations of all pixels, is the least that counts, as in the appearance information.
    """
    total = moments.sum(dim=0)
    moments = moments + SHARE * total
    mean = moments[:, 0, 1:] / moments[:, :1, 0]
    covariance = moments[:, 1:, 1:] / moments[:, :1, :1] - mean[:, :, None] * mean[:, None]
    c = mean.shape[1] // 2
    centre = total[0, 1:] / total[0, 0]
    variance = (total[1:, 1:].diagonal() / total[0, 0] - centre.square()).clamp_min(torch.finfo(torch.float32).tiny)
    covariance = covariance + torch.diag(RESOLUTION**2 * variance)
    # E[y | s] = mean_y + slope (s - mean_s), and what is left of the covariance of y.
    slope = torch.linalg.solve(covariance[:, c:, c:], covariance[:, c:, :c]).mT
    left = covariance[:, :c, :c] - slope @ covariance[:, c:, :c]
    root = torch.linalg.cholesky((left + left.mT) / 2)
    offset = (slope @ mean[:, c:, None])[..., 0] - mean[:, :c]
    expected = torch.cat([torch.eye(c).to(slope).expand_as(slope), -slope, offset[..., None]], dim=2)
    residual = torch.linalg.solve_triangular(root, expected, upper=False)
    log_scale = -root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return Refinement(residual.float(), log_scale.float(), radius)


@torch.no_grad()
def refined_labels(probs: Tensor, colours: Tensor, refinement: Refinement, size: tuple[int, int]) -> Tensor:
    """argmax_k p(k | y, s) of every pixel.

    Args:
        probs: V [B, K, h, w] of the positions.
        colours: (y, s) [B, 2c, H, W] of the pixels that they cover.
        size: of the labels, to which the logarithms of p are upsampled bilinearly.

    Returns:
        [B, *size] uint8.
    """
    K, c = refinement.residual.shape[:2]
    pixels = tuple(colours.shape[2:])
    weights = torch.tensor(SPREAD, device=probs.device)
    spread = (weights[:, None] * weights).expand(K, 1, 3, 3)
    probs = F.conv2d(F.pad(probs.float(), (1, 1, 1, 1), mode="replicate"), spread, groups=K)
    matrix, last = refinement.residual[..., :-1].flatten(0, 1), refinement.residual[..., -1].reshape(-1, 1)
    labels = torch.empty(len(probs), *size, dtype=torch.uint8, device=probs.device)
    for b in range(len(probs)):
        scores = F.interpolate(probs[b : b + 1], size=pixels, mode="bilinear", align_corners=False)[0].flatten(1)
        scores = scores.clamp_(min=FLOOR).log_().add_(refinement.log_scale[:, None])
        for part, of_image in zip(scores.split(CHUNK, dim=1), colours[b].flatten(1).split(CHUNK, dim=1), strict=True):
            residual = torch.addmm(last, matrix, of_image).view(K, c, -1)
            part.sub_(residual.square_().sum(dim=1), alpha=0.5)
        scores = scores.view(1, K, *pixels)
        if size != pixels:
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        labels[b] = scores[0].argmax(dim=0)
    return labels
