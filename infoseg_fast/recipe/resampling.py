"""A merge of over-clusters that does not depend on a few images.

Partitions with nearly equal scores can differ much. A few images, or the rounding of a sum, then
decide which one is best. So the best partition is searched for many resamples of the images (a
bootstrap). The result is the partition that agrees best with all others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .merging import IMAGE_WEIGHT, Statistics, merge, merges, statistics_of

BLOCK_IMAGES = 4  # images that are drawn together: only their sums are kept
RESAMPLES = 16
MAX_RESAMPLED_CLASSES = 64  # a merge of more classes takes seconds


def block_statistics(batches: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> Statistics:
    """The sums of `statistics_of` over blocks of images.

    Args:
        batches: as in `statistics_of`.

    Returns:
        Moments [m, n, S] and joint [m, n, n] of m blocks of at most BLOCK_IMAGES images.
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
    """The partition of the classes with the least mean distance to the others, among the best
    partitions of RESAMPLES resamples of the blocks.

    The distance of two partitions is the share of pairs of positions that only one of them puts
    into one group. The draws depend only on the number of blocks. More than MAX_RESAMPLED_CLASSES
    classes are merged by the sums over all blocks.

    Args:
        blocks: result of `block_statistics`, with n classes.
        number: number of groups, 2 to n.

    Returns:
        Groups in ascending order of their first class. Each class is in one group.
    """
    m, n = blocks.moments.shape[:2]
    everything = total(blocks)
    if m == 1 or not number < n <= MAX_RESAMPLED_CLASSES:
        return merge(everything, number)
    generator = torch.Generator("cpu").manual_seed(0)
    draws = torch.randint(m, (RESAMPLES, m), generator=generator, device="cpu")
    times = [torch.bincount(drawn, minlength=m).double() for drawn in draws]
    resamples = Statistics(*(torch.stack([torch.tensordot(weights, x, dims=1) for weights in times]) for x in blocks))
    found = merges(resamples, [number], (IMAGE_WEIGHT,))[0]
    together = torch.stack([_together(groups, n) for groups in found])
    share = everything.moments[:, 0] / everything.moments[:, 0].sum()
    distance = (together[:, None] != together).double() @ share @ share
    return found[int(distance.sum(dim=1).argmin())]


def _together(groups: list[list[int]], n: int) -> Tensor:
    """Whether two classes share a group, bool [n, n]."""
    group_of = torch.empty(n, dtype=torch.long, device="cpu")
    for i, group in enumerate(groups):
        group_of[group] = i
    return group_of[:, None] == group_of
