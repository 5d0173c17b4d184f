"""Merging of over-clusters: which classes of an over-clustered network form each of K groups.

A network with three times the classes finds things that a network of K classes divides wrongly or
misses: a rare class, a background of two thirds of all pixels, the parts of a class of several
colours. Its classes are then merged to K groups. A partition is scored by two criteria, each as a
share of the value before any merge:

- appearance, I(k; y): the information of the class about the appearance (`recipe.appearance`). It
  counts for a partition.
- image, I(k; k'): the mutual information of the classes of two positions of one image. It counts
  against a partition: classes that follow the light of an image have much of it.

Both are functions of sums over images, and the sums of merged classes are sums of theirs. So no
image is read while partitions are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.class_moments import moments_of
from ..reference.information_of_moments import half_log_dets
from .appearance import RESOLUTION

IMAGE_WEIGHT = 0.3  # of the second criterion in the score
# Weights of further starts of the greedy search. The best result by the score is taken.
GREEDY_WEIGHTS = (IMAGE_WEIGHT, 0.0, 0.6)
MOST_NUMBERS = 2**22  # in a tensor of the partitions that are tried at once
EPSILON = 1e-12


class Statistics(NamedTuple):
    """Sums of n classes over images, in float64.

    Attributes:
        moments: [n, S], sums of the probabilities times `appearance_statistics`.
        joint: [n, n], sums over images of the products of two classes' shares of the image.
    """

    moments: Tensor
    joint: Tensor

    def merged(self, groups: list[list[int]]) -> Statistics:
        """The statistics of groups of the classes."""
        return self.of(self.members(groups))

    def of(self, members: Tensor) -> Statistics:
        """The statistics of groups [..., K, n], where 1 says that a class is in the group."""
        return Statistics(members @ self.moments, members @ self.joint @ members.mT)

    def members(self, groups: list[list[int]]) -> Tensor:
        """Groups of the classes as what `of` takes, [K, n]."""
        members = self.moments.new_zeros(len(groups), len(self.moments))
        for row, group in zip(members, groups, strict=True):
            row[group] = 1
        return members


def statistics_of(batches: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> Statistics:
    """The statistics of batches of images.

    Args:
        batches: probabilities [B, n, h, w], `appearance_statistics` [B, S, h, w], and mask, bool
            [B, h, w] of the positions that count, or None.
    """
    moments, joint = [], []
    for probs, statistics, mask in batches:
        probs = probs.double()
        moments.append(moments_of(probs, statistics.double()))
        if mask is not None:
            probs = probs * mask[:, None]
        share = probs.sum(dim=(2, 3))
        share = share / share.sum(dim=1, keepdim=True).clamp_min(EPSILON)
        joint.append(share.T @ share)
    return Statistics(sum(moments).cpu(), sum(joint).cpu())


class Criteria(NamedTuple):
    """The two criteria of a partition, in nats. Of many partitions, tensors of one shape."""

    appearance: Tensor
    image: Tensor

    def score(self, whole: Criteria, weight: float = IMAGE_WEIGHT) -> Tensor:
        """The partition score: the first criterion less the weighted second, as shares of those of
        `whole`.
        """
        appearance, image = (x / y.clamp_min(EPSILON) for x, y in zip(self, whole, strict=True))
        return appearance - weight * image


def criteria(statistics: Statistics) -> Criteria:
    """The criteria of the classes; of many partitions, with leading dimensions as theirs."""
    joint = statistics.joint / statistics.joint.sum(dim=(-2, -1), keepdim=True)
    share = joint.sum(dim=-1)
    entropy_of_all = _entropy(statistics.moments.sum(dim=-2))
    return Criteria(
        entropy_of_all - _entropy(statistics.moments).sum(dim=-1),
        _xlogx(joint).sum(dim=(-2, -1)) - 2 * _xlogx(share).sum(dim=-1),
    )


def merge(statistics: Statistics, number: int, weights: tuple[float, ...] = GREEDY_WEIGHTS) -> list[list[int]]:
    """The groups of the classes, `number` of them, of the best score found.

    No move of a single class to another group improves it.

    Args:
        statistics: of the classes.
        number: 2 to n.
        weights: of the second criterion, of each start of the greedy search.

    Returns:
        Groups in ascending order of their first class. Every class is in one.
    """
    whole = criteria(statistics)
    statistics = Statistics(statistics.moments, statistics.joint / statistics.joint.sum())
    found = [_improved(statistics, _greedy(statistics, number, whole, w), whole) for w in weights]
    best = max(found, key=lambda groups: criteria(statistics.merged(groups)).score(whole).item())
    return sorted(sorted(group) for group in best)


def _greedy(statistics: Statistics, number: int, whole: Criteria, weight: float) -> list[list[int]]:
    """Merge two classes at a time, always the pair of the best score."""
    groups = [[k] for k in range(len(statistics.moments))]
    pairs = _Pairs(statistics)
    while len(groups) > number:
        score = pairs.criteria().score(whole, weight)
        score.diagonal().fill_(-torch.inf)
        i, j = sorted(divmod(int(score.argmax()), len(groups)))
        groups[i] += groups.pop(j)
        pairs.merge(i, j)
    return groups


def _improved(statistics: Statistics, groups: list[list[int]], whole: Criteria) -> list[list[int]]:
    """Move single classes, always by the move of the best score, as long as one improves it."""
    members, n = statistics.members(groups), len(statistics.moments)
    number = len(groups)
    at_once = max(1, MOST_NUMBERS // (number * number * n))
    best, moved = criteria(statistics.of(members)).score(whole), True
    while moved:
        moved = False
        for classes in torch.arange(n).split(at_once):
            tried = members.repeat(len(classes), number, 1, 1)  # [class, its new group, group, n]
            tried[torch.arange(len(classes)), :, :, classes] = torch.eye(number, dtype=members.dtype)
            score = criteria(statistics.of(tried)).score(whole)
            score[(tried.sum(dim=-1) == 0).any(dim=-1)] = -torch.inf  # a move must leave no group empty
            found = score.flatten().max(dim=0)
            if found.values > best + EPSILON:
                members, best, moved = tried.flatten(0, 1)[found.indices], found.values, True
    return [row.nonzero().flatten().tolist() for row in members]


class _Pairs:
    """The criteria after the merge of two classes, for all pairs. Terms that a merge leaves alone
    are kept.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.moments, self.joint = statistics
        self.entropy = torch.stack([_entropy(self.moments + one) for one in self.moments])
        self.columns = torch.stack([_joining(self.joint, row).sum(dim=1) for row in self.joint])

    def criteria(self) -> Criteria:
        alone, joint, share = _entropy(self.moments), self.joint, self.joint.sum(dim=1)
        own = joint.diagonal()
        first = _joining(own[:, None], joint)  # the columns of the pair itself, which merge too
        return _after_merge(
            criteria(Statistics(self.moments, joint)),
            self.entropy - alone[:, None] - alone,
            self.columns - first - first.T,
            (own[:, None], own, joint),
            (share[:, None], share),
        )

    def merge(self, i: int, j: int) -> None:
        """Merge classes i < j to class i."""
        keep = [k for k in range(len(self.moments)) if k != j]
        old = self._column(i) + self._column(j)
        self.moments = self.moments.index_add(0, torch.tensor([i]), self.moments[j : j + 1])[keep]
        joint = self.joint.index_add(0, torch.tensor([i]), self.joint[j : j + 1])
        self.joint = joint.index_add(1, torch.tensor([i]), joint[:, j : j + 1])[keep][:, keep]
        self.columns = (self.columns - old)[keep][:, keep] + self._column(i)
        row = _joining(self.joint, self.joint[i]).sum(dim=1)
        self.columns[i], self.columns[:, i] = row, row
        self.entropy = self.entropy[keep][:, keep]
        row = _entropy(self.moments + self.moments[i])
        self.entropy[i], self.entropy[:, i] = row, row

    def _column(self, c: int) -> Tensor:
        """The part of `columns` that column c has, for all pairs."""
        x = self.joint[:, c]
        return _joining(x[:, None], x)


def _after_merge(
    now: Criteria,
    entropy: Tensor,
    columns: Tensor,
    joint: tuple[Tensor, Tensor, Tensor],
    share: tuple[Tensor, Tensor],
) -> Criteria:
    """The criteria after classes a and b merge.

    Args:
        entropy: `_entropy` of the merged class less those of a and b.
        columns: sums over the other classes of the change of x log x of `joint` with them.
        joint: of a with a, b with b, a with b. share: of a and b.
    """
    (aa, bb, ab), (a, b) = joint, share
    corner = _xlogx(aa + bb + 2 * ab) - _xlogx(aa) - _xlogx(bb) - 2 * _xlogx(ab)
    return Criteria(
        now.appearance - entropy,
        now.image + 2 * columns + corner - 2 * _joining(a, b),
    )


def _xlogx(x: Tensor) -> Tensor:
    return -torch.special.entr(x.clamp_min(0))


def _joining(x: Tensor, y: Tensor) -> Tensor:
    """(x + y) log (x + y) - x log x - y log y."""
    return _xlogx(x + y) - _xlogx(x) - _xlogx(y)


def _entropy(moments: Tensor) -> Tensor:
    """pi_k 1/2 log det(S_k + r^2) of classes with these moments [.., S], as in
    `information_of_moments`.
    """
    share, half_log_det = half_log_dets(moments, RESOLUTION, EPSILON)
    return torch.where(share > EPSILON, share, 0.0) * half_log_det
