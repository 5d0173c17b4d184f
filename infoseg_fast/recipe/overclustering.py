"""Over-clustering: the network has more classes than the labels, which are groups of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .merging import Statistics, criteria, merges
from .refinement import Refinement, colour_moments, refinement_of
from .resampling import block_statistics, resampled_merge, total
from .sample import Sample

MAX_CLASSES = 256


def network_classes(num_classes: int, factor: float) -> int:
    """The number of classes of the network for labels of `num_classes` classes."""
    return max(num_classes, min(MAX_CLASSES, round(factor * num_classes)))


class OverClusters(NamedTuple):
    """Sums of n classes over the sample, from which the groups for any number of labels follow.

    Attributes:
        blocks: sums over blocks of images that score partitions: moments [m, n, S] and joint [m, n,
            n].
        colours: [n, 2c + 1, 2c + 1], `colour_moments` of the classes. None: no refinement.
    """

    blocks: Statistics
    colours: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, probs: list[Tensor], sample: Sample, smooth: int, refine: bool) -> OverClusters:
        """The sums over a sample.

        Args:
            probs: probabilities [B, n, h, w] of each batch of the sample.
            sample: the sample.
            smooth: radius with which the probabilities were smoothed, positions.
            refine: whether to form the sums of a refinement too.
        """
        masks = [mask for _, mask in sample.batches]
        sums = block_statistics(zip(probs, sample.statistics(smooth), masks, strict=True))
        colours = None
        if refine:
            batches = zip(probs, sample.batches, strict=True)
            colours = sum(
                colour_moments(p, images[:, :-1] if sample.position else images, mask, smooth)
                for p, (images, mask) in batches
            ).cpu()
        # A network whose weights are not finite gets groups too. They mean nothing.
        return cls(Statistics(*map(torch.nan_to_num, sums)), colours)

    @property
    def num_classes(self) -> int:
        """n, the number of classes of the network."""
        return self.blocks.moments.shape[1]

    def groups(self, number: int) -> list[list[int]] | None:
        """The groups for `number` labels. None: each class is a group."""
        return None if number == self.num_classes else resampled_merge(self.blocks, number)

    def best_scores(self, numbers: Sequence[int]) -> list[float]:
        """The best partition score of each number of groups over all images (`merging`)."""
        sums = total(self.blocks)
        found = merges(Statistics(*(x[None] for x in sums)), numbers)
        return [criteria(sums.merged(groups)).score(criteria(sums)).item() for (groups,) in found]

    def refinement(self, groups: list[list[int]] | None, radius: int) -> Refinement | None:
        """The colour densities of the groups. None: there are no `colours`, or no pixel counts."""
        if self.colours is None or not self.colours[:, 0, 0].sum() > 0:
            return None
        moments = self.colours if groups is None else torch.stack([self.colours[group].sum(dim=0) for group in groups])
        return refinement_of(moments, radius)

    def state(self) -> dict[str, Any]:
        """Tensors, for a checkpoint."""
        return {**self.blocks._asdict(), "colours": self.colours}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> OverClusters:
        """The over-clusters with this `state`."""
        return cls(Statistics(state["moments"], state["joint"]), state["colours"])
