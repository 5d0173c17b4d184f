"""Merging of over-clusters: the classes of an over-clustered network form K groups.

A network with three times as many classes finds classes that a network of K classes divides or
misses: a rare class, a background of two thirds of all pixels, a class of several colours. Its
classes are then merged to K groups. A partition is scored by two criteria, each divided by its
value before any merge:

- appearance, I(k; y): the information of the class about the appearance (`recipe.appearance`). It
  counts for a partition.
- image, I(k; k'): the mutual information of the classes of two positions of one image. It counts
  against a partition, since it is large for classes that follow the light of an image.

Both are functions of sums over images, and the sums of merged classes add up. So no image is read
while partitions are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.class_moments import moments_of
from ..reference.information_of_moments import half_log_dets
from .appearance import RESOLUTION

IMAGE_WEIGHT = 0.3  # weight of the second criterion in the score
GREEDY_WEIGHTS = (IMAGE_WEIGHT, 0.0, 0.6)  # of each greedy search; the groups of the best score are kept
MAX_MOVE_NUMBERS = 2**21  # numbers in the largest tensor of all moves
ROWS = 16  # rows of a matrix of pairs that are formed at once
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
        """The statistics of groups. `members` [..., K, n] is 1 where a class is in a group, else
        0.
        """
        return Statistics(members @ self.moments, members @ self.joint @ members.mT)

    def members(self, groups: list[list[int]]) -> Tensor:
        """The argument of `of` for groups of the classes, [K, n]."""
        members = self.moments.new_zeros(len(groups), len(self.moments))
        for row, group in zip(members, groups, strict=True):
            row[group] = 1
        return members


def statistics_of(batches: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> Statistics:
    """The statistics of batches of images.

    Args:
        batches: for each batch the probabilities [B, n, h, w], `appearance_statistics` [B, S, h,
            w], and the positions that count, bool [B, h, w], or None.
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
    """The two criteria of partitions in nats, two tensors of one shape."""

    appearance: Tensor
    image: Tensor

    def score(self, whole: Criteria, weight: float = IMAGE_WEIGHT) -> Tensor:
        """The partition score: the first criterion minus `weight` times the second, each divided by
        its value in `whole`.
        """
        appearance, image = (x / y.clamp_min(EPSILON) for x, y in zip(self, whole, strict=True))
        return appearance - weight * image


def criteria(statistics: Statistics) -> Criteria:
    """The criteria of statistics [..., n, S] and [..., n, n], two tensors [...]."""
    joint = statistics.joint / statistics.joint.sum(dim=(-2, -1), keepdim=True)
    share = joint.sum(dim=-1)
    entropy_of_all = _entropy(statistics.moments.sum(dim=-2))
    return Criteria(
        entropy_of_all - _entropy(statistics.moments).sum(dim=-1),
        _xlogx(joint).sum(dim=(-2, -1)) - 2 * _xlogx(share).sum(dim=-1),
    )


def merge(statistics: Statistics, number: int, weights: tuple[float, ...] = GREEDY_WEIGHTS) -> list[list[int]]:
    """The groups of the classes with the best score that is found. No move of a single class to
    another group improves the score, unless there are many classes (MAX_MOVE_NUMBERS).

    Args:
        statistics: the statistics of n classes.
        number: number of groups, 2 to n.
        weights: weight of the second criterion in each greedy search.

    Returns:
        Groups in ascending order of their first class. Each class is in one group.
    """
    whole = criteria(statistics)
    statistics = Statistics(statistics.moments, statistics.joint / statistics.joint.sum())
    pairs = _PairMerges.of(statistics)
    found = [_improved(statistics, _greedy(pairs, number, whole, weight), whole) for weight in weights]
    best = max(found, key=lambda groups: criteria(statistics.merged(groups)).score(whole).item())
    return sorted(sorted(group) for group in best)


def _greedy(pairs: _PairMerges, number: int, whole: Criteria, weight: float) -> list[list[int]]:
    """Merge two classes at a time, always the pair of the best score."""
    groups = [[k] for k in range(len(pairs.moments))]
    while len(groups) > number:
        score = pairs.criteria().score(whole, weight)
        score.diagonal().fill_(-torch.inf)
        i, j = sorted(divmod(int(score.argmax()), len(groups)))
        groups[i] += groups.pop(j)
        pairs = pairs.merged(i, j)
    return groups


def _improved(statistics: Statistics, groups: list[list[int]], whole: Criteria) -> list[list[int]]:
    """The groups after moves of single classes, always the move of the best score, while one
    improves it. Groups of many classes are not changed.
    """
    number, n = len(groups), len(statistics.moments)
    if (number * n) ** 2 > MAX_MOVE_NUMBERS:
        return groups
    members = statistics.members(groups)
    while True:
        now = criteria(statistics.of(members)).score(whole)
        score = _after_move(statistics, members).score(whole)
        # No move to the own group, and none that leaves a group empty.
        alone = members.sum(dim=1)[members.argmax(dim=0)] == 1
        score.masked_fill_(members.mT.bool() | alone[:, None], -torch.inf)
        best = score.flatten().max(dim=0)
        if not best.values > now + EPSILON:
            return [row.nonzero().flatten().tolist() for row in members]
        moved, group = divmod(int(best.indices), number)
        members[:, moved], members[group, moved] = 0, 1


def _after_move(statistics: Statistics, members: Tensor) -> Criteria:
    """The criteria after the move of a class to a group, for all classes and groups: [n, K].

    A move of class c from group a to b changes only the sums of these two groups. The sums of a are
    formed anew, since a small difference of large sums would be mostly rounding.

    Args:
        members: the groups [K, n], as in `Statistics.of`.
    """
    number = len(members)
    own = members.argmax(dim=0)  # the group a of each class
    rest = members[own]  # [n, n], the members of a without the class
    rest.diagonal().zero_()
    now = statistics.of(members)
    before = criteria(now)

    group_entropy = _entropy(now.moments)
    entropy = _entropy(rest @ statistics.moments) - group_entropy[own]
    entropy = entropy[:, None] + _entropy(now.moments + statistics.moments[:, None]) - group_entropy

    of_class = statistics.joint @ members.mT  # [n, K], the joint of the class with each group
    of_rest = rest @ of_class  # [n, K], the joint of a without the class with each group
    itself, with_rest = statistics.joint.diagonal(), (rest * statistics.joint).sum(dim=1)
    X, corner = _xlogx(now.joint), now.joint.diagonal()
    in_a = torch.nn.functional.one_hot(own, number).bool()
    others = ~(in_a[:, None] | torch.eye(number, dtype=torch.bool, device=X.device))  # [n, b, h]: neither a nor b
    lost = _xlogx(of_rest) - X[own]  # [n, h], change of the term of a and h
    won = _xlogx(now.joint + of_class[:, None]) - X  # [n, b, h], change of the term of b and h
    joint = 2 * torch.where(others, lost[:, None] + won, 0).sum(dim=2)
    joint = joint + (_xlogx((rest @ statistics.joint * rest).sum(dim=1)) - X.diagonal()[own])[:, None]
    joint = joint + _xlogx(corner + 2 * of_class + itself[:, None]) - X.diagonal()
    joint = joint + 2 * (_xlogx(of_rest + with_rest[:, None]) - X[own])

    share, share_of_class = now.joint.sum(dim=1), statistics.joint.sum(dim=1)
    shares = (_xlogx(of_rest.sum(dim=1)) - _xlogx(share[own]))[:, None]
    shares = shares + _xlogx(share + share_of_class[:, None]) - _xlogx(share)
    return Criteria(before.appearance - entropy, before.image + joint - 2 * shares)


class _PairMerges(NamedTuple):
    """Sums from which the criteria after the merge of any two of m classes follow.

    J is the joint of the classes, f(x) = x log x, and X = f(J). A merge of the classes a and b
    changes the sum of X by

        2 sum_h [f(J_ah + J_bh) - X_ah - X_bh] over the other classes h
            + f(J_aa + J_bb + 2 J_ab) - X_aa - X_bb - 2 X_ab

    After a merge only the row and the column of the merged class are formed anew.

    Attributes:
        moments, joint: the statistics of the classes.
        share: [m], sums of the rows of J.
        entropy: [m], `_entropy` of each class.
        pair_entropy: [m, m], `_entropy` of each pair as one class.
        row_sums: [m], sums of the rows of X.
        pair_sums: [m, m], sums of f(J_ah + J_bh) over all h.
        corrections: [m, m], `_corrections` of each pair.
    """

    moments: Tensor
    joint: Tensor
    share: Tensor
    entropy: Tensor
    pair_entropy: Tensor
    row_sums: Tensor
    pair_sums: Tensor
    corrections: Tensor

    @classmethod
    def of(cls, statistics: Statistics) -> _PairMerges:
        """The sums of the classes with these statistics."""
        moments, joint = statistics
        share, classes = joint.sum(dim=1), range(len(joint))
        return cls(
            moments,
            joint,
            share,
            _entropy(moments),
            torch.cat([_entropy(some[:, None] + moments) for some in moments.split(ROWS)]),
            _xlogx(joint).sum(dim=1),
            torch.stack([_xlogx(joint + row).sum(dim=1) for row in joint]),
            torch.stack([_corrections(joint, share, k) for k in classes]),
        )

    def criteria(self) -> Criteria:
        """The criteria of the partitions after the merge of a pair, [m, m]."""
        shares = _xlogx(self.share)
        each = _xlogx(self.joint.diagonal()) - 2 * self.row_sums + 2 * shares
        appearance = _entropy(self.moments.sum(dim=0)) - self.entropy.sum() - self.pair_entropy
        image = self.row_sums.sum() - 2 * shares.sum() + self.corrections
        return Criteria(
            appearance.add_(self.entropy).add_(self.entropy[:, None]),
            image.add_(self.pair_sums, alpha=2).add_(each).add_(each[:, None]),
        )

    def merged(self, i: int, j: int) -> _PairMerges:
        """The sums after the merge of class j into class i < j."""
        both = self.joint[:, i], self.joint[:, j]
        pair_sums = self.pair_sums - _xlogx(both[0][:, None] + both[0])
        pair_sums -= _xlogx(both[1][:, None] + both[1])
        row_sums = self.row_sums - _xlogx(both[0]) - _xlogx(both[1])
        joint = self.joint.clone()
        joint[i] += joint[j]
        joint[:, i] += joint[:, j]
        joint, pair_entropy, pair_sums, corrections = (
            _without(x, j) for x in (joint, self.pair_entropy, pair_sums, self.corrections)
        )
        moments, share, entropy = (x.clone() for x in (self.moments, self.share, self.entropy))
        moments[i] += moments[j]
        share[i] += share[j]
        entropy[i] = self.pair_entropy[i, j]
        moments, share, entropy, row_sums = (
            torch.cat([x[:j], x[j + 1 :]]) for x in (moments, share, entropy, row_sums)
        )
        pair_sums += _xlogx(joint[i][:, None] + joint[i])
        row_sums += _xlogx(joint[i])
        row_sums[i] = _xlogx(joint[i]).sum()
        new = _xlogx(joint + joint[i]).sum(dim=1), _corrections(joint, share, i), _entropy(moments + moments[i])
        for x, row in zip((pair_sums, corrections, pair_entropy), new, strict=True):
            x[i], x[:, i] = row, row
        return _PairMerges(moments, joint, share, entropy, pair_entropy, row_sums, pair_sums, corrections)


def _corrections(joint: Tensor, share: Tensor, k: int) -> Tensor:
    """The terms of the merge of class k with each class h that `pair_sums` and the sums of single
    classes do not contain, [m]. With f and X of `_PairMerges` they are

        f(J_kk + J_hh + 2 J_kh) - 2 f(share_k + share_h)
            - 2 [f(J_kk + J_kh) + f(J_hh + J_kh) - X_kh]
    """
    own, row = joint.diagonal(), joint[k]
    pair = _xlogx(own[k] + own + 2 * row) - 2 * _xlogx(share[k] + share)
    return pair - 2 * (_xlogx(own[k] + row) + _xlogx(own + row) - _xlogx(row))


def _without(x: Tensor, j: int) -> Tensor:
    """The square matrix without row j and column j."""
    kept = x.new_empty(len(x) - 1, len(x) - 1)
    for to, rows in ((slice(0, j), slice(0, j)), (slice(j, None), slice(j + 1, None))):
        kept[to, :j], kept[to, j:] = x[rows, :j], x[rows, j + 1 :]
    return kept


def _xlogx(x: Tensor) -> Tensor:
    return x * x.clamp_min(torch.finfo(x.dtype).tiny).log()  # twice as fast as torch.special.entr


def _entropy(moments: Tensor) -> Tensor:
    """The weighted entropy of classes with moments [..., S] as normal distributions, up to a
    constant: pi_k 1/2 log det(S_k + r^2), see `information_of_moments`.
    """
    share, half_log_det = half_log_dets(moments, RESOLUTION, EPSILON)
    return torch.where(share > EPSILON, share, 0.0) * half_log_det
