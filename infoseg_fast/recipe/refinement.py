"""Labels at the pixels: which class a pixel's colour speaks for, given the colours around it.

A position's class is that of a cell of 4 x 4 pixels, and a network that sees 7 is unsure along every edge. So the
classes that a pixel and its neighbours may have, by the probabilities of the positions, are a prior, and Bayes' rule

    p(k | y, s) ~ prior_k p(y | s, k)

decides between them, with y the colour of the pixel and s that of its surroundings. p(y | s, k) is the conditional
density of a normal distribution of (y, s) whose moments are those of class k over training images, weighted with its
probabilities: no label is used. That s is given, not part of what is told, leaves to the network what regions are:
where light or texture varies over a region, colour says little of its class, and y then tells little beside s.

A pixel's neighbours have colours too. So p(k | y, s), averaged over the pixels of each position, is what they tell of
it, and in the next of a few passes the prior is mostly that, the rest the network's own: a mean field. It is for images
whose pixels tell classes apart; where only their texture does, what colours seem to tell is chance, and adds up. With
passes the moments are formed anew with p(k | y, s): the probabilities of positions blur every edge.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..ops.information_of_moments import RESOLUTION
from ..ops.refined_labels import refined_labels as pixel_labels
from ..ops.refined_probs import refined_probs
from ..reference import moments_of, neighbourhood_mean
from ..reference.local_appearance import DARK

SURROUNDINGS = 5  # positions each way over which the surroundings' colour is averaged
LEAST_DEVIATION = 0.03  # a channel counts as having this one at least: a tenth of it is what 8 bits resolve
PASSES = 2  # before labels are made, where pixels tell at least TELLING
TOLD = 0.8  # the part of the prior that is what the pixels told in the pass before
TELLING = 1 / 8  # of what the positions leave uncertain
MAX_PASSES = 8
SHARE = 1e-3  # every class has this share of the moments of all: one that is nowhere looks like everything


class Refinement(NamedTuple):
    """What the pixels of each class look like, given their surroundings, and how they are looked at.

    residual [K, c, 2c + 1] takes (y, s, 1) to R_k (y - E[y | s, k]), of unit covariance; log_scale [K] is log det R_k:
    log p(y | s, k) = log_scale - 1/2 |residual|^2 + const. radius: y is the mean over 2 radius + 1 pixels each way.
    passes: how often what the pixels tell becomes part of the prior.
    """

    residual: Tensor
    log_scale: Tensor
    radius: int
    passes: int = 0  # as in checkpoints of before there were any

    def to(self, device: torch.device | str) -> "Refinement":
        return self._replace(residual=self.residual.to(device), log_scale=self.log_scale.to(device))

    @property
    def reach(self) -> int:
        """Positions each way that a pixel's label depends on: a pass spreads and upsamples, and so do labels."""
        return 2 * (self.passes + 1)


class Colours(NamedTuple):
    """What is seen of images: y [B, c, H, W] of their pixels, s [B, c, h, w] of what surrounds the positions."""

    pixels: Tensor
    around: Tensor


def colours(images: Tensor, size: tuple[int, int], radius: int) -> Colours:
    """Logarithms of the channels of images, averaged over 2 radius + 1 pixels each way, and those of the cells of a map
    of `size`, averaged over 2 SURROUNDINGS + 1 cells each way; float32.

    Args:
        images: float [B, c, H, W] in [0, 1].
        size: (h, w) of the positions that cover them.
    """
    images = images.float()
    cells = (F.adaptive_avg_pool2d(images, size) + DARK).log()
    return Colours((neighbourhood_mean(images, radius) + DARK).log(), neighbourhood_mean(cells, SURROUNDINGS))


@torch.no_grad()
def class_colours(probs: Tensor, images: Tensor, mask: Tensor | None, radius: int) -> Tensor:
    """Moments of (1, y, s) of the pixels of each class, a pixel having its position's probabilities.

    Args:
        probs: V [B, K, h, w]. images: float [B, c, H, W] in [0, 1], which the positions cover.
        mask: bool [B, h, w]; only positions where it holds count.

    Returns:
        [K, 2c + 1, 2c + 1] float64, which batches may add up.
    """
    pixels, around = colours(images, probs.shape[2:], radius)
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
    variance = (total[1:, 1:].diagonal() / total[0, 0] - centre.square()).clamp_min(LEAST_DEVIATION**2)
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
def pixel_colours(probs: Tensor, images: Tensor, mask: Tensor | None, refinement: Refinement) -> Tensor:
    """Moments as `class_colours` has them, a pixel having p(k | y, s) of its own, after the refinement's passes.

    Args:
        as in `class_colours`.

    Returns:
        [K, 2c + 1, 2c + 1] float64, which batches may add up.
    """
    seen = colours(images, probs.shape[2:], refinement.radius)
    prior, size = prior_of(probs, seen, refinement), seen.pixels.shape[2:]
    around = F.interpolate(seen.around, size=size, mode="bilinear", align_corners=False)
    u = torch.cat([torch.ones_like(around[:, :1]), seen.pixels, around], dim=1)
    moments = 0
    for b in range(len(probs)):
        given = prior[b], seen.pixels[b], seen.around[b], refinement.residual, refinement.log_scale
        weights = reference.refined_scores(*given).softmax(dim=0)
        if mask is not None:
            weights = weights * F.interpolate(mask[None, b : b + 1].float(), size=size)[0]
        x = u[b].flatten(1).double()
        moments = moments + torch.stack([(x * of_class) @ x.mT for of_class in weights.flatten(1).double()])
    return moments * (probs.shape[2:].numel() / size.numel())


@torch.no_grad()
def uncertainty(probs: Tensor, images: Tensor, mask: Tensor | None, refinement: Refinement) -> Tensor:
    """How uncertain classes are before and after looking at the pixels: the entropies of the prior and of p(k | y, s).

    Args:
        as in `class_colours`.

    Returns:
        Their sums over the pixels of positions that count, in nats: [2] float64, which batches may add up.
    """
    prior, seen = spread(probs), colours(images, probs.shape[2:], refinement.radius)
    sums = prior.new_zeros(2, dtype=torch.float64)
    for b in range(len(probs)):
        given = prior[b], seen.pixels[b], seen.around[b], refinement.residual, refinement.log_scale
        after = torch.special.entr(reference.refined_scores(*given).softmax(dim=0)).sum(dim=0)
        entropies = [
            torch.special.entr(prior[b]).sum(dim=0),
            F.adaptive_avg_pool2d(after[None], probs.shape[2:])[0],
        ]
        counted = torch.stack(entropies).double() * (1 if mask is None else mask[b])
        sums += counted.sum(dim=(1, 2))
    return sums


def spread(probs: Tensor) -> Tensor:
    """Each position's probabilities and its neighbours', weighted with (1 2 1) / 4 each way: float32 [B, K, h, w].

    Sums, and no convolution, whose factors a GPU may round.
    """
    probs = F.pad(probs.float(), (1, 1, 1, 1), mode="replicate")
    for dim in (2, 3):
        before, here, after = (probs.narrow(dim, i, probs.shape[dim] - 2) for i in range(3))
        probs = (before + after) / 4 + here / 2
    return probs


def prior_of(probs: Tensor, colours: Colours, refinement: Refinement, backend: str = "auto") -> Tensor:
    """Probabilities of positions, spread over their neighbours, after the refinement's passes: float32 [B, K, h, w]."""
    prior = spread(probs)
    for _ in range(refinement.passes):
        told = refined_probs(prior, *colours, refinement.residual, refinement.log_scale, backend=backend)
        prior = spread(torch.lerp(probs.float(), told, TOLD))
    return prior


@torch.no_grad()
def refined_labels(
    probs: Tensor, colours: Colours, refinement: Refinement, size: tuple[int, int], *, backend: str = "auto"
) -> Tensor:
    """argmax_k p(k | y, s) of every pixel. The prior are the probabilities of positions, spread over their neighbours;
    after each of the refinement's passes, TOLD of it is what their pixels tell.

    Args:
        probs: V [B, K, h, w] of the positions.
        colours: of the pixels that they cover, and around the positions.
        size: of the labels; where it is not that of the pixels, the logarithms of p are upsampled bilinearly to it.
        backend: "auto", "reference", or "cpp" or "triton", which take labels of the pixels' size.

    Returns:
        [B, *size] uint8; of equal classes the lowest.
    """
    given = prior_of(probs, colours, refinement, backend), *colours, refinement.residual, refinement.log_scale
    if tuple(size) == tuple(colours.pixels.shape[2:]):
        return pixel_labels(*given, backend=backend)
    if backend not in ("auto", "reference"):
        raise ValueError(
            f"backend {backend!r} takes labels of the pixels' size {list(colours.pixels.shape[2:])}, not {list(size)}"
        )
    labels = torch.empty(len(probs), *size, dtype=torch.uint8, device=probs.device)
    for b, (of_image, pixels, around) in enumerate(zip(*given[:3], strict=True)):
        scores = reference.refined_scores(of_image, pixels, around, *given[3:])[None]
        labels[b] = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    return labels
