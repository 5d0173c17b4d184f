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
MOST_NUMBERS = 2**21  # in the tensor of all moves that are tried at once
ROWS = 16  # of a matrix of pairs that are formed at once
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

    No move of a single class to another group improves it, unless there are many classes
    (MOST_NUMBERS).

    Args:
        statistics: of the classes.
        number: 2 to n.
        weights: of the second criterion, of each start of the greedy search.

    Returns:
        Groups in ascending order of their first class. Every class is in one.
    """
    whole = criteria(statistics)
    statistics = Statistics(statistics.moments, statistics.joint / statistics.joint.sum())
    pairs = _Pairs.of(statistics)
    found = [_improved(statistics, _greedy(pairs, number, whole, weight), whole) for weight in weights]
    best = max(found, key=lambda groups: criteria(statistics.merged(groups)).score(whole).item())
    return sorted(sorted(group) for group in best)


def _greedy(pairs: _Pairs, number: int, whole: Criteria, weight: float) -> list[list[int]]:
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
    """Move single classes, always by the move of the best score, as long as one improves it. Of
    many classes the groups stay as they are.
    """
    number, n = len(groups), len(statistics.moments)
    if (number * n) ** 2 > MOST_NUMBERS:
        return groups
    members = statistics.members(groups)
    while True:
        now = criteria(statistics.of(members)).score(whole)
        score = _after_move(statistics, members).score(whole)
        # A class stays in no other than its group, and a move leaves no group empty.
        alone = members.sum(dim=1)[members.argmax(dim=0)] == 1
        score.masked_fill_(members.mT.bool() | alone[:, None], -torch.inf)
        best = score.flatten().max(dim=0)
        if not best.values > now + EPSILON:
            return [row.nonzero().flatten().tolist() for row in members]
        moved, group = divmod(int(best.indices), number)
        members[:, moved], members[group, moved] = 0, 1


def _after_move(statistics: Statistics, members: Tensor) -> Criteria:
    """The criteria after the move of a class to a group, for all classes and groups: [n, K].

    A move of class c from group a to b changes the sums of these two groups alone. Those of a are
    formed anew, since a small difference of large sums would be mostly their rounding.

    Args:
        members: groups [K, n], as `Statistics.of` takes them.
    """
    number = len(members)
    own = members.argmax(dim=0)  # the group a of each class
    rest = members[own]  # [n, n], the members of a without the class
    rest.diagonal().zero_()
    now = statistics.of(members)
    before = criteria(now)

    alone = _entropy(now.moments)
    entropy = _entropy(rest @ statistics.moments) - alone[own]
    entropy = entropy[:, None] + _entropy(now.moments + statistics.moments[:, None]) - alone

    of_class = statistics.joint @ members.mT  # [n, K], the joint of the class with each group
    of_rest = rest @ of_class  # that of a without the class
    itself, with_rest = statistics.joint.diagonal(), (rest * statistics.joint).sum(dim=1)
    X, corner = _xlogx(now.joint), now.joint.diagonal()
    in_a = torch.nn.functional.one_hot(own, number).bool()
    others = ~(in_a[:, None] | torch.eye(number, dtype=torch.bool, device=X.device))  # [n, b, h]: neither a nor b
    lost = _xlogx(of_rest) - X[own]  # [n, h], of a with h
    won = _xlogx(now.joint + of_class[:, None]) - X  # [n, b, h], of b with h
    joint = 2 * torch.where(others, lost[:, None] + won, 0).sum(dim=2)
    joint = joint + (_xlogx((rest @ statistics.joint * rest).sum(dim=1)) - X.diagonal()[own])[:, None]
    joint = joint + _xlogx(corner + 2 * of_class + itself[:, None]) - X.diagonal()
    joint = joint + 2 * (_xlogx(of_rest + with_rest[:, None]) - X[own])

    share, share_of_class = now.joint.sum(dim=1), statistics.joint.sum(dim=1)
    shares = (_xlogx(of_rest.sum(dim=1)) - _xlogx(share[own]))[:, None]
    shares = shares + _xlogx(share + share_of_class[:, None]) - _xlogx(share)
    return Criteria(before.appearance - entropy, before.image + joint - 2 * shares)


class _Pairs(NamedTuple):
    """What the criteria after the merge of two classes follow from, for all pairs of m classes.

    With J the joint, X = x log x of its entries and x log x short f, the sum of f over J changes
    with a merge of a and b by

        2 sum_h [f(J_ah + J_bh) - X_ah - X_bh] over the other classes h
            + f(J_aa + J_bb + 2 J_ab) - X_aa - X_bb - 2 X_ab

    A merge changes the terms of one class, and one column of the sum over h, so all are kept.

    Attributes:
        moments, joint: the statistics.
        share: [m], sums of `joint`.
        alone: [m], `_entropy` of each class.
        entropy: [m, m], `_entropy` of each pair.
        rows: [m], sums of X.
        columns: [m, m], sums of f(J_ah + J_bh) over all h.
        rest: [m, m], what a pair changes beside, see `_rest`.
    """

    moments: Tensor
    joint: Tensor
    share: Tensor
    alone: Tensor
    entropy: Tensor
    rows: Tensor
    columns: Tensor
    rest: Tensor

    @classmethod
    def of(cls, statistics: Statistics) -> _Pairs:
        """From the statistics of the classes."""
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
            torch.stack([_rest(joint, share, k) for k in classes]),
        )

    def criteria(self) -> Criteria:
        """The criteria of the partitions in which a pair is merged, [m, m]."""
        X, shares = _xlogx(self.joint.diagonal()), _xlogx(self.share)
        each = X - 2 * self.rows + 2 * shares
        everything = _entropy(self.moments.sum(dim=0))
        return Criteria(
            (everything - self.alone.sum() - self.entropy).add_(self.alone).add_(self.alone[:, None]),
            (self.rows.sum() - 2 * shares.sum() + self.rest).add_(self.columns, alpha=2).add_(each).add_(each[:, None]),
        )

    def merged(self, i: int, j: int) -> _Pairs:
        """The classes after the merge of classes i < j to class i."""
        both = self.joint[:, i], self.joint[:, j]
        columns = self.columns - _xlogx(both[0][:, None] + both[0])
        columns -= _xlogx(both[1][:, None] + both[1])
        rows = self.rows - _xlogx(both[0]) - _xlogx(both[1])
        joint = self.joint.clone()
        joint[i] += joint[j]
        joint[:, i] += joint[:, j]
        joint, entropy, columns, rest = (_without(x, j) for x in (joint, self.entropy, columns, self.rest))
        moments, share, alone, rows = (x.clone() for x in (self.moments, self.share, self.alone, rows))
        moments[i] += moments[j]
        share[i] += share[j]
        alone[i] = self.entropy[i, j]
        moments, share, alone, rows = (torch.cat([x[:j], x[j + 1 :]]) for x in (moments, share, alone, rows))
        columns += _xlogx(joint[i][:, None] + joint[i])
        rows += _xlogx(joint[i])
        rows[i] = _xlogx(joint[i]).sum()
        new = _xlogx(joint + joint[i]).sum(dim=1), _rest(joint, share, i), _entropy(moments + moments[i])
        for x, row in zip((columns, rest, entropy), new, strict=True):
            x[i], x[:, i] = row, row
        return _Pairs(moments, joint, share, alone, entropy, rows, columns, rest)


def _rest(joint: Tensor, share: Tensor, k: int) -> Tensor:
    """f(J_kk + J_hh + 2 J_kh) - 2 f(share_k + share_h), less the columns k and h of the sums of
    `_Pairs.columns` and with the X_kh that they hold, for each class h: [m].
    """
    own, row = joint.diagonal(), joint[k]
    pair = _xlogx(own[k] + own + 2 * row) - 2 * _xlogx(share[k] + share)
    return pair - 2 * (_xlogx(own[k] + row) + _xlogx(own + row) - _xlogx(row))


def _without(x: Tensor, j: int) -> Tensor:
    """The matrix without row and column j."""
    kept = x.new_empty(len(x) - 1, len(x) - 1)
    for to, rows in ((slice(0, j), slice(0, j)), (slice(j, None), slice(j + 1, None))):
        kept[to, :j], kept[to, j:] = x[rows, :j], x[rows, j + 1 :]
    return kept


def _xlogx(x: Tensor) -> Tensor:
    return x * x.clamp_min(torch.finfo(x.dtype).tiny).log()  # twice as fast as torch.special.entr


def _entropy(moments: Tensor) -> Tensor:
    """pi_k 1/2 log det(S_k + r^2) of classes with these moments [.., S], as in
    `information_of_moments`.
    """
    share, half_log_det = half_log_dets(moments, RESOLUTION, EPSILON)
    return torch.where(share > EPSILON, share, 0.0) * half_log_det
