"""A merge of over-clusters that does not hang on a few images.

Partitions of nearly one score can differ much, and a few images or the rounding of a sum then
decide which is best. So the best partition is searched for many resamples of the images (a
bootstrap), and the one that agrees best with all others is taken.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .merging import IMAGE_WEIGHT, Statistics, merge, statistics_of

BLOCK_IMAGES = 4  # images that are drawn together: only sums over them are kept
RESAMPLES = 16
MOST_RESAMPLED = 64  # classes; one merge of more takes seconds


def block_statistics(batches: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> Statistics:
    """The sums of `statistics_of` over blocks of images.

    Args:
        batches: as of `statistics_of`.

    Returns:
        moments [m, n, S] and joint [m, n, n] of m blocks of at most BLOCK_IMAGES images.
    """
    blocks = []
    for probs, statistics, mask in batches:
        for start in range(0, len(probs), BLOCK_IMAGES):
            part = slice(start, start + BLOCK_IMAGES)
            blocks.append(statistics_of([(probs[part], statistics[part], None if mask is None else mask[part])]))
    return Statistics(*(torch.stack(x) for x in zip(*blocks, strict=True)))


def total(blocks: Statistics) -> Statistics:
    """The sums over all images."""
    return Statistics(blocks.moments.sum(dim=0), blocks.joint.sum(dim=0))


def resampled_merge(blocks: Statistics, number: int) -> list[list[int]]:
    """The groups of the classes, `number` of them: of the best groups of RESAMPLES resamples of the
    blocks, those with the least distance to the others.

    The distance of two partitions is the share of pairs of positions that one puts into one group
    and the other does not. The draws are the same for the same number of blocks. More than
    MOST_RESAMPLED classes are merged by the sums over all blocks.

    Args:
        blocks: from `block_statistics`.
        number: 2 to n.

    Returns:
        Groups in ascending order of their first class. Every class is in one.
    """
    m, n = blocks.moments.shape[:2]
    everything = total(blocks)
    if m == 1 or not number < n <= MOST_RESAMPLED:
        return merge(everything, number)
    generator = torch.Generator("cpu").manual_seed(0)
    draws = torch.randint(m, (RESAMPLES, m), generator=generator, device="cpu")
    found = []
    for drawn in draws:
        times = torch.bincount(drawn, minlength=m).double()
        resample = Statistics(*(torch.tensordot(times, x, dims=1) for x in blocks))
        found.append(merge(resample, number, (IMAGE_WEIGHT,)))
    together = torch.stack([_together(groups, n) for groups in found])
    share = everything.moments[:, 0] / everything.moments[:, 0].sum()
    distance = (together[:, None] != together).double() @ share @ share
    return found[int(distance.sum(dim=1).argmin())]


def _together(groups: list[list[int]], n: int) -> Tensor:
    """Bool [n, n]: which classes share a group."""
    group_of = torch.empty(n, dtype=torch.long, device="cpu")
    for i, group in enumerate(groups):
        group_of[group] = i
    return group_of[:, None] == group_of
