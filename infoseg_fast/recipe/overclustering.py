"""Over-clustering: labels from the merged classes of a second network, where these have the better
partition score.
"""

import logging

import torch
from torch import Tensor

from .merging import Statistics, criteria, merge, statistics_of
from .sample import Sample

logger = logging.getLogger("infoseg_fast")

MAX_CLASSES = 256
# The least gain of the score that decides for the merged classes. Smaller differences follow from
# rounding alone, for example from the number of threads.
MIN_SCORE_GAIN = 0.006


def over_clusters(num_classes: int, factor: float) -> int:
    """The number of classes of the over-clustered network; 0 where there is none."""
    number = min(MAX_CLASSES, round(factor * num_classes))
    return number if number > num_classes else 0


def choose_groups(probs: list[Tensor], over_probs: list[Tensor], sample: Sample, smooth: int) -> list[list[int]] | None:
    """The groups of the over-clusters that labels are made of; None keeps the classes of the first
    network.

    Args:
        probs: probabilities of the K classes, a tensor [B, K, h, w] for each batch of the sample.
        over_probs: the same of the over-clusters.
        smooth: radius with which both were smoothed.
    """

    def statistics(of: list[Tensor]) -> Statistics:
        masks = [mask for _, mask in sample.batches]
        return statistics_of(zip(of, sample.statistics(smooth), masks, strict=True))

    own, over = statistics(probs), statistics(over_probs)
    if not all(torch.isfinite(x).all() for x in (*own, *over)):
        return None
    whole, groups = criteria(over), merge(over, probs[0].shape[1])
    score, merged_score = (criteria(x).score(whole).item() for x in (own, over.merged(groups)))
    accepted = merged_score > score + MIN_SCORE_GAIN
    logger.info(
        "labels: %s (partition score %.3f, merged over-clusters %.3f)",
        "merged over-clusters" if accepted else "K-class network",
        score,
        merged_score,
    )
    return groups if accepted else None
