"""Scoring a segmenter on a set, image by image: memory does not grow with their number."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import LAST
from ..data import prepared
from ..data.base import ImageSet, to_float
from ..errors import DataError
from ..segmenter import Segmenter
from .metrics import ClusterMetrics

BATCH_PIXELS = 2**19  # of one pass through the network; a larger image is a pass of its own
READ_AHEAD = 2  # batches


def batches(images: ImageSet) -> Iterator[list[int]]:
    """Runs of neighbouring images of one size, as long as a pass through the network takes."""
    chosen: list[int] = []
    for index, size in enumerate(images.sizes):
        if chosen and (size != images.sizes[chosen[0]] or (len(chosen) + 1) * size[0] * size[1] > BATCH_PIXELS):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def evaluate(segmenter: Segmenter, images: ImageSet, device: torch.device, progress: bool = False) -> dict:
    """Segment every image at its native size and score against the labels; see `score`.

    One matching of clusters to classes for the whole set.
    """

    def count(pixels: Tensor, target: Tensor) -> Tensor:
        # The segmenter scales the images, as it does for prediction.
        return segmenter.count(pixels.to(device), target.to(device), images.num_targets).cpu()

    return score(count, segmenter.num_clusters, images, progress)


def score(
    count: Callable[[Tensor, Tensor], Tensor], num_clusters: int, images: ImageSet, progress: bool = False
) -> dict:
    """The scores of whatever labels images.

    Args:
        count: pixels float [B, c, H, W] in [0, 1] and target uint8 [B, H, W] -> joint counts int64
            [num_clusters, images.num_targets], targets of 255 left out.

    Returns:
        As `ClusterMetrics.compute`; of a set with a protocol also "protocol", what must be told beside the scores.
    """
    if not images.has_labels:
        raise DataError(
            f"{images.name} has no labels (no labels/ folder that covers the split), so nothing to score by"
        )
    counts = torch.zeros(num_clusters, images.num_targets, dtype=torch.int64)

    def read(chosen: list[int]) -> tuple[Tensor, Tensor]:
        pixels = to_float(np.stack([images.native_image(index) for index in chosen]))
        return pixels, torch.from_numpy(np.stack([images.target(index) for index in chosen]))

    with ThreadPoolExecutor(1) as reader, tqdm(total=len(images), desc="evaluating", disable=not progress) as bar:
        waiting = []
        for chosen in [*batches(images), *[None] * READ_AHEAD]:
            if chosen is not None:
                waiting.append(reader.submit(read, chosen))
            if waiting and (len(waiting) > READ_AHEAD or chosen is None):
                pixels, target = waiting.pop(0).result()
                counts += count(pixels, target)
                bar.update(len(pixels))
    metrics = ClusterMetrics(num_clusters, images.num_classes)
    metrics.add(images.folded(counts.numpy()))
    scores, protocol = metrics.compute(), images.protocol(counts.numpy())
    return scores | ({"protocol": protocol} if protocol else {})


def add_training(scores: dict, loss_mask: str, checkpoint: str) -> None:
    """Add to the protocol of the scores, if they have one, what it says of the training."""
    if "protocol" in scores:
        rule = "last step" if checkpoint == LAST else "lowest training loss"
        scores["protocol"] |= {"loss_mask": loss_mask, "epoch_rule": f"{rule} (no label chose it)"}


def as_text(scores: dict, classes: list[str] | None = None) -> str:
    """The scores as lines for a person, with what the constant predictor gets beside the accuracy."""
    lines = [
        *([prepared.as_text(scores["protocol"], scores)] if "protocol" in scores else []),
        f"pixel accuracy     {scores['pixel_accuracy']:.4f}   (constant predictor {scores['majority_accuracy']:.4f})",
        f"mean IoU           {scores['mean_iou']:.4f}",
        f"NMI                {scores['nmi']:.4f}",
        f"pixels counted     {scores['num_pixels']:,}",
    ]
    for cls, (share, iou) in enumerate(zip(scores["class_shares"], scores["iou"], strict=True)):
        name = classes[cls] if classes else f"class {cls}"
        clusters = [str(cluster) for cluster, mapped in enumerate(scores["mapping"]) if mapped == cls]
        lines.append(f"  {name:<24} share {share:.3f}   IoU {iou:.3f}   cluster {', '.join(clusters) or 'none'}")
    return "\n".join(lines)
