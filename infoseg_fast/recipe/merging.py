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

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

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
T = TypeVar("T", bound=Any)  # a named tuple of tensors


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
        """The statistics of groups. `members` [K, n], or [m, K, n] for m sums, is 1 where a class
        is in a group, else 0.
        """
        return Statistics(_product(members, self.moments), _product(_product(members, self.joint), members.mT))

    def members(self, groups: list[list[int]]) -> Tensor:
        """The argument of `of` for groups of the classes, [K, n]."""
        members = self.moments.new_zeros(len(groups), self.moments.shape[-2])
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

    def score(self, whole: Criteria, weight: float | Tensor = IMAGE_WEIGHT) -> Tensor:
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
    return merges(Statistics(*(x[None] for x in statistics)), [number], weights)[0][0]


def merges(
    statistics: Statistics, numbers: Sequence[int], weights: tuple[float, ...] = GREEDY_WEIGHTS
) -> list[list[list[list[int]]]]:
    """The results of `merge` for several sums of the same classes and several numbers of groups.

    The searches for all sums advance together, since an operation on all of them takes hardly
    longer than on one. A greedy search passes all numbers of groups.

    Args:
        statistics: moments [m, n, S] and joint [m, n, n], m sums of n classes.
        numbers: numbers of groups, each 2 to n.
        weights: as in `merge`.

    Returns:
        For each number, m lists of groups.
    """
    searches, whole = len(weights), _repeated(criteria(statistics), len(weights))
    statistics = Statistics(statistics.moments, statistics.joint / statistics.joint.sum(dim=(-2, -1), keepdim=True))
    pairs = _repeated(_PairMerges.of(statistics), searches)
    statistics = _repeated(statistics, searches)
    weight = torch.tensor(weights, dtype=torch.float64, device="cpu").repeat(len(pairs.share) // searches)
    found = []
    greedy = _greedy(pairs, min(numbers), whole, weight)
    for number in numbers:
        groups = _improved(statistics, greedy[number], whole)
        members = torch.stack([statistics.members(one) for one in groups])
        scores = criteria(statistics.of(members)).score(whole).tolist()
        best = [max(range(k, k + searches), key=scores.__getitem__) for k in range(0, len(groups), searches)]
        found.append([sorted(sorted(group) for group in groups[k]) for k in best])
    return found


def _repeated(sums: T, times: int) -> T:
    """A named tuple of tensors [m, ...] with each of the m repeated."""
    return type(sums)(*(x.repeat_interleave(times, dim=0) for x in sums))


def _greedy(pairs: _PairMerges, least: int, whole: Criteria, weight: Tensor) -> dict[int, list[list[list[int]]]]:
    """Merge two classes at a time, always the pair of the best score.

    Args:
        pairs: m sums of n classes.
        least: number of groups at the end.
        whole, weight: arguments of `Criteria.score` for each of the m.

    Returns:
        For each number of groups from n to `least`, m lists of groups.
    """
    m, n = pairs.share.shape
    groups = [[[k] for k in range(n)] for _ in range(m)]
    found = {n: groups}
    whole = Criteria(*(x[:, None, None] for x in whole))
    for number in range(n, least, -1):
        score = pairs.criteria().score(whole, weight[:, None, None])
        score.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        best = score.flatten(1).argmax(dim=1)
        i, j = torch.stack([best // number, best % number]).sort(dim=0).values
        groups = [
            [*one[:a], one[a] + one[b], *one[a + 1 : b], *one[b + 1 :]]
            for one, a, b in zip(groups, i.tolist(), j.tolist(), strict=True)
        ]
        found[number - 1] = groups
        if number - 1 > least:
            pairs = pairs.merged(i, j)
    return found


def _improved(statistics: Statistics, groups: list[list[list[int]]], whole: Criteria) -> list[list[list[int]]]:
    """The groups of m sums after moves of single classes, always the move of the best score, while
    one improves it. Groups of many classes are not changed.
    """
    number, n = len(groups[0]), statistics.moments.shape[1]
    if (number * n) ** 2 > MAX_MOVE_NUMBERS:
        return groups
    members = torch.stack([statistics.members(one) for one in groups])
    moving = torch.arange(len(groups), device="cpu")
    while len(moving):
        sums, bound = Statistics(*(x[moving] for x in statistics)), Criteria(*(x[moving] for x in whole))
        mine = members[moving]
        now = criteria(sums.of(mine)).score(bound)
        score = _after_move(sums, mine).score(Criteria(*(x[:, None, None] for x in bound)))
        # No move to the own group, and none that leaves a group empty.
        alone = mine.sum(dim=2).gather(1, mine.argmax(dim=1)) == 1
        score.masked_fill_(mine.mT.bool() | alone[:, :, None], -torch.inf)
        best = score.flatten(1).max(dim=1)
        better = best.values > now + EPSILON
        moving, place = moving[better], best.indices[better]
        members[moving, :, place // number] = 0
        members[moving, place % number, place // number] = 1
    return [[row.nonzero().flatten().tolist() for row in one] for one in members]


def _after_move(statistics: Statistics, members: Tensor) -> Criteria:
    """The criteria after the move of a class to a group, for all classes and groups: [m, n, K].

    A move of class c from group a to b changes only the sums of these two groups. The sums of a are
    formed anew, since a small difference of large sums would be mostly rounding.

    Args:
        statistics: m sums of n classes.
        members: their groups [m, K, n], as in `Statistics.of`.
    """
    own = members.argmax(dim=1)  # [m, n], the group a of each class

    def of_own(x: Tensor) -> Tensor:
        """The rows of x [m, K, ...] of the group a of each class, [m, n, ...]."""
        return x[torch.arange(len(x), device=x.device)[:, None], own]

    rest = of_own(members)  # [m, n, n], the members of a without the class
    rest.diagonal(dim1=1, dim2=2).zero_()
    now = statistics.of(members)
    before = criteria(now)

    group_entropy = _entropy(now.moments)
    entropy = _entropy(_product(rest, statistics.moments)) - of_own(group_entropy)
    joined = _entropy(now.moments[:, None] + statistics.moments[:, :, None])
    entropy = entropy[:, :, None] + joined - group_entropy[:, None]

    of_class = _product(statistics.joint, members.mT)  # [m, n, K], the joint of the class with each group
    of_rest = _product(rest, of_class)  # [m, n, K], the joint of a without the class with each group
    itself, with_rest = statistics.joint.diagonal(dim1=1, dim2=2), (rest * statistics.joint).sum(dim=2)
    X, corner = _xlogx(now.joint), now.joint.diagonal(dim1=1, dim2=2)
    same = torch.eye(len(members[0]), dtype=torch.bool, device=X.device)
    others = ~(same[own][:, :, None] | same)  # [m, n, b, h]: h is neither a nor b
    lost = _xlogx(of_rest) - of_own(X)  # [m, n, h], change of the term of a and h
    won = _xlogx(now.joint[:, None] + of_class[:, :, None]) - X[:, None]  # [m, n, b, h], change of the term of b and h
    joint = 2 * torch.where(others, lost[:, :, None] + won, 0).sum(dim=3)
    of_a = _xlogx((_product(rest, statistics.joint) * rest).sum(dim=2)) - of_own(X.diagonal(dim1=1, dim2=2))
    joint = joint + of_a[:, :, None]
    joint = joint + _xlogx(corner[:, None] + 2 * of_class + itself[:, :, None]) - X.diagonal(dim1=1, dim2=2)[:, None]
    joint = joint + 2 * (_xlogx(of_rest + with_rest[:, :, None]) - of_own(X))

    share, share_of_class = now.joint.sum(dim=2), statistics.joint.sum(dim=2)
    shares = (_xlogx(of_rest.sum(dim=2)) - _xlogx(of_own(share)))[:, :, None]
    shares = shares + _xlogx(share[:, None] + share_of_class[:, :, None]) - _xlogx(share)[:, None]
    return Criteria(before.appearance[:, None, None] - entropy, before.image[:, None, None] + joint - 2 * shares)


class _PairMerges(NamedTuple):
    """Sums from which the criteria after the merge of any two of n classes follow, for each of m
    sums of these classes.

    J is the joint of the classes, f(x) = x log x, and X = f(J). A merge of the classes a and b
    changes the sum of X by

        2 sum_h [f(J_ah + J_bh) - X_ah - X_bh] over the other classes h
            + f(J_aa + J_bb + 2 J_ab) - X_aa - X_bb - 2 X_ab

    After a merge only the row and the column of the merged class are formed anew.

    Attributes:
        moments, joint: the statistics of the classes, [m, n, S] and [m, n, n].
        share: [m, n], sums of the rows of J.
        entropy: [m, n], `_entropy` of each class.
        pair_entropy: [m, n, n], `_entropy` of each pair as one class.
        row_sums: [m, n], sums of the rows of X.
        pair_sums: [m, n, n], sums of f(J_ah + J_bh) over all h.
        corrections: [m, n, n], `_corrections` of each pair.
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
        share, classes = joint.sum(dim=2), range(joint.shape[1])
        return cls(
            moments,
            joint,
            share,
            _entropy(moments),
            torch.cat([_entropy(some[:, :, None] + moments[:, None]) for some in moments.split(ROWS, dim=1)], dim=1),
            _xlogx(joint).sum(dim=2),
            torch.stack([_xlogx(joint + joint[:, k, None]).sum(dim=2) for k in classes], dim=1),
            torch.stack(
                [_corrections(joint, share, share.new_full((len(share), 1), k).long()) for k in classes], dim=1
            ),
        )

    def criteria(self) -> Criteria:
        """The criteria of the partitions after the merge of a pair, [m, n, n]."""
        shares = _xlogx(self.share)
        each = _xlogx(self.joint.diagonal(dim1=1, dim2=2)) - 2 * self.row_sums + 2 * shares
        appearance = (_entropy(self.moments.sum(dim=1)) - self.entropy.sum(dim=1))[:, None, None] - self.pair_entropy
        image = (self.row_sums.sum(dim=1) - 2 * shares.sum(dim=1))[:, None, None] + self.corrections
        return Criteria(
            appearance.add_(self.entropy[:, None]).add_(self.entropy[:, :, None]),
            image.add_(self.pair_sums, alpha=2).add_(each[:, None]).add_(each[:, :, None]),
        )

    def merged(self, i: Tensor, j: Tensor) -> _PairMerges:
        """The sums after the merge of class j into class i < j, int64 [m]."""
        m, n = self.share.shape
        every = torch.arange(m, device=i.device)
        kept = torch.arange(n - 1, device=i.device)
        kept = kept + (kept >= j[:, None])  # [m, n - 1], all but j
        pairs_kept = (kept[:, :, None] * n + kept[:, None]).flatten(1)

        def without(x: Tensor) -> Tensor:
            """x [m, n] or [m, n, n] without the rows j, and without the columns j."""
            if x.dim() == 2:
                return x.gather(1, kept)
            return x.flatten(1).gather(1, pairs_kept).view(m, n - 1, n - 1)

        both = self.joint[every, :, i], self.joint[every, :, j]
        pair_sums = self.pair_sums - _xlogx(both[0][:, :, None] + both[0][:, None])
        pair_sums -= _xlogx(both[1][:, :, None] + both[1][:, None])
        row_sums = self.row_sums - _xlogx(both[0]) - _xlogx(both[1])
        joint, moments, share, entropy = (x.clone() for x in (self.joint, self.moments, self.share, self.entropy))
        joint[every, i] += joint[every, j]
        joint[every, :, i] += joint[every, :, j]
        moments[every, i] += moments[every, j]
        share[every, i] += share[every, j]
        entropy[every, i] = self.pair_entropy[every, i, j]
        joint, share, entropy, row_sums, pair_entropy, pair_sums, corrections = map(
            without, (joint, share, entropy, row_sums, self.pair_entropy, pair_sums, self.corrections)
        )
        moments = moments[every[:, None], kept]
        row = joint[every, i]
        pair_sums += _xlogx(row[:, :, None] + row[:, None])
        row_sums += _xlogx(row)
        row_sums[every, i] = _xlogx(row).sum(dim=1)
        new = (
            _xlogx(joint + row[:, None]).sum(dim=2),
            _corrections(joint, share, i[:, None]),
            _entropy(moments + moments[every, i][:, None]),
        )
        for x, values in zip((pair_sums, corrections, pair_entropy), new, strict=True):
            x[every, i] = values
            x[every, :, i] = values
        return _PairMerges(moments, joint, share, entropy, pair_entropy, row_sums, pair_sums, corrections)


def _corrections(joint: Tensor, share: Tensor, k: Tensor) -> Tensor:
    """The terms of the merge of class k, int64 [m, 1], with each class h that `pair_sums` and the
    sums of single classes do not contain, [m, n]. With f and X of `_PairMerges` they are

        f(J_kk + J_hh + 2 J_kh) - 2 f(share_k + share_h)
            - 2 [f(J_kk + J_kh) + f(J_hh + J_kh) - X_kh]
    """
    own, row = joint.diagonal(dim1=1, dim2=2), joint[torch.arange(len(k), device=k.device), k[:, 0]]
    own_k, share_k = own.gather(1, k), share.gather(1, k)
    pair = _xlogx(own_k + own + 2 * row) - 2 * _xlogx(share_k + share)
    return pair - 2 * (_xlogx(own_k + row) + _xlogx(own + row) - _xlogx(row))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """The matrix products x y. PyTorch rounds a batch of products differently from one product, and
    partitions of equal score should not depend on that.
    """
    return x @ y if x.dim() == 2 else torch.stack([a @ b for a, b in zip(x, y, strict=True)])


def _xlogx(x: Tensor) -> Tensor:
    return x * x.clamp_min(torch.finfo(x.dtype).tiny).log()  # twice as fast as torch.special.entr


def _entropy(moments: Tensor) -> Tensor:
    """The weighted entropy of classes with moments [..., S] as normal distributions, up to a
    constant: pi_k 1/2 log det(S_k + r^2), see `information_of_moments`.
    """
    share, half_log_det = half_log_dets(moments, RESOLUTION, EPSILON)
    return torch.where(share > EPSILON, share, 0.0) * half_log_det
