"""The loss of a network over the images of all ranks.

A rank returns its part of the loss. The sum over the ranks of (images of the rank / images of all
ranks) x part is the loss of one process on all images. The training loop weights and sums gradients
in this way for every recipe. So a mean over the images of a rank needs no change. A mean over
positions is weighted by their number. Terms that are not means (the class usage, the moments of the
appearance) are formed from differentiable sums over the ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..draws import generator_on
from ..ops import checks, class_moments, mutual_information_loss
from ..ops.appearance_statistics import appearance_statistics
from ..ops.information_of_moments import information_of_moments
from ..recipe.description import description, with_position_noise
from ..reference.folding import fold_projection
from ..reference.information_of_moments import symmetric_places
from ..reference.mutual_information_loss import class_usage_penalty, softplus
from .sums import gathered, sizes_of_ranks, summed
from .world import across_ranks, rank, ranks

SCORES = 2**24  # scores formed at once; more are formed in parts, and again in the backward pass


class Valid(NamedTuple):
    """The positions of a rank that count.

    Attributes:
        mask: bool [B, h, w]. None: all count. If none counts, it is all True, since the mean over
            no position is not a number, and `share` is 0.
        share: number of positions of this rank that count, divided by `total`, a scalar.
        total: number of positions of all ranks that count, a scalar.
        counts: 1 if a position of any rank counts, else 0, a scalar factor of the loss. If it is 0,
            all positions are in `share` and `total`.
    """

    mask: Tensor | None
    share: Tensor
    total: Tensor
    counts: Tensor

    @classmethod
    def of(cls, mask: Tensor | None, features: Tensor) -> Valid:
        """The positions of features [B, C, h, w] of this rank, with its mask bool [B, h, w]."""
        positions = features.shape[0] * features.shape[2] * features.shape[3]
        number = torch.full((), positions, dtype=torch.int64, device=features.device) if mask is None else mask.sum()
        own = torch.stack([number, torch.full_like(number, positions)])
        of_all = own.clone()
        if ranks() > 1:
            dist.all_reduce(of_all)
        counts = of_all[0] > 0
        number_of_all = torch.where(counts, of_all[0], of_all[1]).double()
        share = torch.where(counts, own[0], own[1]) / number_of_all
        return cls(None if mask is None else mask | (number == 0), share, number_of_all, counts.double())


def loss_over_ranks(
    criterion,
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    across: bool = True,
    chosen: Tensor | None = None,
) -> Tensor:
    """This rank's part of the loss over all ranks. It is 0 if no position of any rank counts.

    Args:
        criterion: an `InfoSegLoss`.
        features, global_features, weight, bias, mask: of the images of this rank, as in
            `mutual_information_loss`.
        across: whether images of other ranks are negatives too, if the estimator allows it.
        chosen: indices [N] of the positions at which the mutual information is estimated, row by
            row, the same for every image. None: all positions. The class usage is always that of
            all positions, since the mean of a logarithm is not the logarithm of a mean.
    """
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    sizes = sizes_of_ranks(len(features))
    valid = everywhere = Valid.of(mask, features)
    at = features
    if chosen is not None:
        at = features.flatten(2)[:, :, None, chosen]
        valid = Valid.of(None if mask is None else mask.flatten(1)[:, None, chosen], at)
    if across and ranks() > 1 and across_ranks(criterion.estimator, criterion.negatives):
        with checks.without_autocast(features):
            G, g0 = fold_projection(global_features, weight, bias)
            G, g0 = gathered(G, sizes), None if g0 is None else gathered(g0, sizes)
            information = _mean_over_positions(criterion, at, G, g0, valid.mask, sum(sizes[: rank()]))
    else:
        information = mutual_information_loss(
            at, global_features, weight, bias, temperature=criterion.temperature, estimator=criterion.estimator,
            negatives=criterion.negatives, num_negatives=criterion.num_negatives, mask=valid.mask,
            backend=criterion.backend,
        )  # fmt: skip
    loss = information * (valid.counts * valid.share * sum(sizes) / len(features)).to(information.dtype)
    if criterion.balance:
        number = len(features), 1, *features.shape[2:]
        counted = features.new_ones(number, dtype=torch.float32) if mask is None else mask[:, None].float()
        given = {"statistics": counted, "temperature": criterion.temperature, "backend": criterion.backend}
        usage = summed(class_moments(features, global_features, weight, bias, **given))[:, 0]
        usage = usage / everywhere.total.to(usage.dtype)
        loss = loss + criterion.balance * class_usage_penalty(usage) * everywhere.counts.to(usage.dtype)
    return loss


def chosen_positions(number: int | None, features: Tensor, seed: int, step: int) -> Tensor | None:
    """Indices of `number` positions of features [B, C, h, w], int64 [number], drawn uniformly
    without repetition. None: the features have no more positions, or `number` is None.

    They are the same for every image, since a negative pair compares the same position of two
    images. A GPU draws them itself, so that nothing is copied to it.
    """
    positions = features.shape[2] * features.shape[3]
    if number is None or number >= positions:
        return None
    if features.device.type != "cpu":
        keys = torch.rand(positions, generator=generator_on(features.device, seed, step), device=features.device)
        return keys.argsort()[:number].sort().values
    draw = np.random.default_rng((seed, step)).choice(positions, number, replace=False)
    return torch.from_numpy(np.sort(draw))


def _mean_over_positions(
    criterion, features: Tensor, G: Tensor, g0: Tensor | None, mask: Tensor | None, first: int
) -> Tensor:
    """The mean of the loss over the positions of features [b, C, h, w] that count. G [B, K, C] and
    g0 [B, K] belong to the images of all ranks. The first image of this rank has the index `first`.
    """
    (B, K, _), (b, C), P = G.shape, features.shape[:2], features[0, 0].numel()
    partners = B - 1 if criterion.num_negatives == "all" else criterion.num_negatives
    at_once = max(1, SCORES // ((1 + partners) * K * max(P, C)))
    total = features.new_zeros((), dtype=G.dtype)
    for start in range(0, b, at_once):
        part = slice(start, min(start + at_once, b))
        image = torch.arange(first + part.start, first + part.stop, device=G.device)
        image = (image[:, None] + torch.arange(1 + partners, device=G.device)) % B
        given = features[part], G, g0, None if mask is None else mask[part], image, criterion
        total = total + (_sum_over_positions(*given) if at_once >= b else checkpoint(
            _sum_over_positions, *given, use_reentrant=False))  # fmt: skip
    return total / (b * P if mask is None else mask.sum())


def _sum_over_positions(features, G, g0, mask, image, criterion) -> Tensor:
    """The sum of `reference.folded_loss` over positions, with the candidates `image` [b, 1 + n] among
    the images of all ranks.
    """
    q = torch.einsum("bjkc,bcp->bjkp", G[image], features.to(G.dtype).flatten(2))
    if g0 is not None:
        q = q + g0[image][..., None]
    z, w = q[:, 0], q[:, 1:]
    positive = (torch.softmax(criterion.temperature * z, dim=1) * z).sum(dim=1)
    if criterion.estimator == "infonce":
        loss = torch.logsumexp(q.flatten(1, 2), dim=1) - positive
    else:
        negative = (torch.softmax(criterion.temperature * w, dim=2) * w).sum(dim=2)
        loss = softplus(-positive) + softplus(negative).mean(dim=1)
    return loss.sum() if mask is None else torch.where(mask.flatten(1), loss, 0).sum()


def appearance_over_ranks(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    images: Tensor,
    mask: Tensor | None,
    temperature: float,
    smooth: int,
    position: Tensor | None = None,
) -> Tensor:
    """`recipe.appearance.appearance_term` for the images of all ranks, the same on every rank. It is
    0 if no position of any rank counts.

    `appearance_statistics` scales the appearance y to mean 0 and variance 1 over the images of the
    rank. Let m_r and s_r be the mean and the standard deviation of the rank, and m and s those of
    all ranks. With a = s_r / s and c = (m_r - m) / s the moments M of the rank become A M A^T in the
    common scale, with A = [[1, 0], [c, diag(a)]].
    """
    valid = Valid.of(mask, features)
    y = description(images, position, features.shape[2:])
    own = torch.ones_like(y[:, :1]) if valid.mask is None else valid.mask[:, None].to(y.dtype)
    own = own / own.sum()
    mean = (y * own).sum(dim=(0, 2, 3))
    variance = ((y - mean[:, None, None]).square() * own).sum(dim=(0, 2, 3)).double()
    mean = mean.double()
    of_all = valid.share * torch.stack([mean, variance + mean.square()])
    dist.all_reduce(of_all)
    tiny = torch.finfo(y.dtype).tiny
    deviation = (of_all[1] - of_all[0].square()).clamp_min(0).sqrt().clamp_min(tiny)
    A = torch.diag(torch.cat([mean.new_ones(1), variance.sqrt() / deviation]))
    A[1:, 0] = (mean - of_all[0]) / deviation

    statistics = appearance_statistics(y, valid.mask, smooth)
    given = {"statistics": statistics, "temperature": temperature}
    moments = class_moments(features, global_features, weight, bias, **given)
    both = torch.cat([moments, statistics.sum(dim=(0, 2, 3))[None].to(moments.dtype)]).double()
    row, column = torch.triu_indices(len(A), len(A), device=A.device)
    scaled = (A @ both[:, symmetric_places(len(A), A.device)] @ A.mT)[:, row, column]
    scaled = summed(valid.share * scaled).to(moments.dtype)
    if position is not None:
        scaled = with_position_noise(scaled, 1)
    return information_of_moments(scaled[:-1], scaled[-1]) * valid.counts.to(scaled.dtype)
