"""Which classes of a network that has more than are wanted to take together.

A network with three times the classes finds things that one with K divides wrongly or not at all: a rare class, a
ground of two thirds of all pixels, each part of a class of several colours. What remains is to take its classes
together, K groups of them. How good a partition is is told by three numbers, each as a share of what the classes have
before any go together:

- I(k; y), the appearance information (`infoseg_fast.recipe.appearance`): what the classes tell of what is seen.
- I(k; k'), the mutual information of the classes of two positions of one image: what a class tells of which image it is
  in. Classes that follow the light of an image or the taking of it tell much of this and little of what is seen.
- -log P(k = k'): how little two positions of one image have in common. It is small where a ground is left whole.

The first is wanted, the others are paid for. All three are functions of sums over images, and sums of classes that are
taken together are their sums, so no image is looked at while partitions are compared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import moments_of
from .appearance import RESOLUTION

OF_ONE_IMAGE, DIFFERING = 0.175, 0.1  # the weights of what is paid for, see docs/recipe.md
# By how much groups must be worth more than classes that a network was trained with. What differs by less is decided by
# rounding: the same run on one thread and on two.
CLEARLY = 0.006
# A greedy merging is followed by moves that improve; of several greedy ones, by other weights, the best is taken.
GREEDY = ((OF_ONE_IMAGE, DIFFERING), (0.0, 0.0), (0.4, 0.0), (0.2, 0.3))
SWEEPS = 20  # over all classes at most; each move is an improvement
TINY = 1e-12


class Sums(NamedTuple):
    """Of n classes: their moments [n, S] (sums of the probabilities times `appearance_statistics`), and `together`
    [n, n], the sum over images of the products of the shares that two classes have of an image. Both float64."""

    moments: Tensor
    together: Tensor

    def grouped(self, groups: list[list[int]]) -> "Sums":
        """Those of the classes that are the sums of groups of these."""
        member = self.moments.new_zeros(len(groups), len(self.moments))
        for row, group in zip(member, groups, strict=True):
            row[group] = 1
        return Sums(member @ self.moments, member @ self.together @ member.T)


def sums_of(probs: Tensor, statistics: Tensor, mask: Tensor | None = None) -> Sums:
    """Those of images, which those of other images may be added to.

    Args:
        probs: V [B, n, h, w] of the positions. statistics: [B, S, h, w], their `appearance_statistics`.
        mask: bool [B, h, w], of the positions that count, as the statistics have it.
    """
    probs = probs.double()
    moments = moments_of(probs, statistics.double())
    if mask is not None:
        probs = probs * mask[:, None]
    inside = probs.sum(dim=(2, 3))
    inside = inside / inside.sum(dim=1, keepdim=True).clamp_min(TINY)
    return Sums(moments, inside.T @ inside)


class Told(NamedTuple):
    """What a partition is judged by: I(k; y), I(k; k') and -log P(k = k'), in nats; of many partitions, tensors."""

    appearance: Tensor
    image: Tensor
    differing: Tensor

    def worth(self, whole: "Told", weights: tuple[float, float] = GREEDY[0]) -> Tensor:
        """The first less the others, as shares of what is told by `whole`, the classes before any go together."""
        shares = [x / y.clamp_min(TINY) for x, y in zip(self, whole, strict=True)]
        return shares[0] - weights[0] * shares[1] - weights[1] * shares[2]


def told(sums: Sums) -> Told:
    """What classes tell."""
    joint = sums.together / sums.together.sum()
    share = joint.sum(dim=1)
    spread_out = _uncertainty(sums.moments.sum(dim=0))
    return Told(
        spread_out - _uncertainty(sums.moments).sum(),
        _xlogx(joint).sum() - 2 * _xlogx(share).sum(),
        -joint.diagonal().sum().clamp_min(TINY).log(),
    )


def merged(sums: Sums, number: int) -> list[list[int]]:
    """Groups of the classes, `number` of them, whose worth no move of one class to another group improves.

    Args:
        sums: of n classes, n >= number.

    Returns:
        Groups in ascending order of their first class; every class is in one.
    """
    whole, sums = told(sums), Sums(sums.moments, sums.together / sums.together.sum())
    found = [_improved(sums, _greedy(sums, number, whole, weights), whole) for weights in GREEDY]
    best = max(found, key=lambda groups: told(sums.grouped(groups)).worth(whole).item())
    return sorted(sorted(group) for group in best)


def _greedy(sums: Sums, number: int, whole: Told, weights: tuple[float, float]) -> list[list[int]]:
    """Two classes at a time go together, those after which the worth is greatest."""
    groups = [[k] for k in range(len(sums.moments))]
    pairs = _Pairs(sums)
    while len(groups) > number:
        worth = pairs.told().worth(whole, weights)
        worth.diagonal().fill_(-torch.inf)
        i, j = sorted(divmod(int(worth.argmax()), len(groups)))
        groups[i] += groups.pop(j)
        pairs.merge(i, j)
    return groups


def _improved(sums: Sums, groups: list[list[int]], whole: Told) -> list[list[int]]:
    """Classes move to the group that suits them best, one at a time, as long as that is an improvement."""
    groups = [list(group) for group in groups]
    for _ in range(SWEEPS):
        moved = False
        for k in range(len(sums.moments)):
            home = next(i for i, group in enumerate(groups) if k in group)
            if len(groups[home]) == 1:
                continue
            groups[home].remove(k)
            # The class on its own beside the groups: it goes where the worth is greatest.
            worth = _joined(sums.grouped([*groups, [k]]), len(groups)).worth(whole)
            best = int(worth.argmax())
            best = best if worth[best] > worth[home] + TINY else home
            groups[best].append(k)
            moved |= best != home
        if not moved:
            break
    return groups


def _joined(sums: Sums, k: int) -> Told:
    """What is told when class k, the last, goes together with each of the others."""
    now, joint, share = told(sums), sums.together, sums.together.sum(dim=1)
    alone = _uncertainty(sums.moments)
    rest, own = joint[:k, :k], joint[k, :k]
    columns = _joining(rest, own)
    return _change(
        now,
        _uncertainty(sums.moments[:k] + sums.moments[k]) - alone[:k] - alone[k],
        columns.sum(dim=1) - columns.diagonal(),
        (rest.diagonal(), joint[k, k], own),
        (share[:k], share[k]),
    )


class _Pairs:
    """What is told when two classes go together, for all pairs: kept as classes go, since most of it stays."""

    def __init__(self, sums: Sums) -> None:
        self.moments, self.together = sums
        self.pair = torch.stack([_uncertainty(self.moments + one) for one in self.moments])
        self.columns = torch.stack([_joining(self.together, row).sum(dim=1) for row in self.together])

    def told(self) -> Told:
        alone, joint, share = _uncertainty(self.moments), self.together, self.together.sum(dim=1)
        own = joint.diagonal()
        # Columns of all classes; the two that are the pair's own go together as well.
        first = _joining(own[:, None], joint)
        return _change(
            told(Sums(self.moments, joint)),
            self.pair - alone[:, None] - alone,
            self.columns - first - first.T,
            (own[:, None], own, joint),
            (share[:, None], share),
        )

    def merge(self, i: int, j: int) -> None:
        """Classes i < j go together, as class i."""
        keep = [k for k in range(len(self.moments)) if k != j]
        gone = self._of_column(i) + self._of_column(j)
        self.moments = self.moments.index_add(0, torch.tensor([i]), self.moments[j : j + 1])[keep]
        joint = self.together.index_add(0, torch.tensor([i]), self.together[j : j + 1])
        self.together = joint.index_add(1, torch.tensor([i]), joint[:, j : j + 1])[keep][:, keep]
        self.columns = (self.columns - gone)[keep][:, keep] + self._of_column(i)
        row = _joining(self.together, self.together[i]).sum(dim=1)
        self.columns[i], self.columns[:, i] = row, row
        self.pair = self.pair[keep][:, keep]
        pair = _uncertainty(self.moments + self.moments[i])
        self.pair[i], self.pair[:, i] = pair, pair

    def _of_column(self, c: int) -> Tensor:
        """The part of `columns` that is column c's, for all pairs."""
        x = self.together[:, c]
        return _joining(x[:, None], x)


def _change(now: Told, pair: Tensor, columns: Tensor, joint: tuple, share: tuple) -> Told:
    """What is told after two classes a and b have gone together.

    Args:
        pair: the uncertainty of the two together, less that of each.
        columns: sums over the other classes of the change of x log x of their `together` with them.
        joint: `together` of a with a, b with b, a with b. share: those of a and b.
    """
    (aa, bb, ab), (a, b) = joint, share
    corner = _xlogx(aa + bb + 2 * ab) - _xlogx(aa) - _xlogx(bb) - 2 * _xlogx(ab)
    return Told(
        now.appearance - pair,
        now.image + 2 * columns + corner - 2 * _joining(a, b),
        -((-now.differing).exp() + 2 * ab).clamp_min(TINY).log(),
    )


def _xlogx(x: Tensor) -> Tensor:
    return -torch.special.entr(x.clamp_min(0))


def _joining(x: Tensor, y: Tensor) -> Tensor:
    """The change of x log x when x and y go together."""
    return _xlogx(x + y) - _xlogx(x) - _xlogx(y)


def _uncertainty(moments: Tensor) -> Tensor:
    """pi_k 1/2 log det(S_k + r^2) of classes with these moments [.., S], as in the appearance information."""
    size = moments.shape[-1]
    d = int(((8 * size + 1) ** 0.5 - 3) / 2)  # S = (d + 1) (d + 2) / 2
    share = moments[..., 0]
    mean = moments[..., 1 : d + 1] / share[..., None].clamp_min(TINY)
    row, column = torch.triu_indices(d, d)
    second = moments.new_zeros(*moments.shape[:-1], d, d)
    second[..., row, column] = second[..., column, row] = moments[..., d + 1 :]
    covariance = second / share[..., None, None].clamp_min(TINY) - mean[..., :, None] * mean[..., None, :]
    # What rounding takes below zero where a class is hardly anywhere.
    return share * 0.5 * torch.logdet(covariance + RESOLUTION**2 * torch.eye(d, dtype=moments.dtype)).nan_to_num()
