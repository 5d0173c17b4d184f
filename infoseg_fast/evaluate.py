"""Scoring a segmenter on a set, image by image: memory does not grow with their number."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from .data.base import ImageSet, to_float
from .errors import DataError
from .metrics import ClusterMetrics
from .segmenter import Segmenter

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
    """Segment every image at its native size and score against the labels; see `ClusterMetrics.compute`.

    One matching of clusters to classes for the whole set.
    """
    if not images.has_labels:
        raise DataError(
            f"{images.name} has no labels (no labels/ folder that covers the split), so nothing to score by"
        )
    metrics = ClusterMetrics(segmenter.num_clusters, images.num_classes)

    def read(chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        # The segmenter scales the images, as it does for prediction.
        pixels = to_float(np.stack([images.native_image(index) for index in chosen]))
        return pixels, torch.from_numpy(np.stack([images.label(index) for index in chosen]))

    with ThreadPoolExecutor(1) as reader, tqdm(total=len(images), desc="evaluating", disable=not progress) as bar:
        waiting = []
        for chosen in [*batches(images), *[None] * READ_AHEAD]:
            if chosen is not None:
                waiting.append(reader.submit(read, chosen))
            if waiting and (len(waiting) > READ_AHEAD or chosen is None):
                pixels, target = waiting.pop(0).result()
                metrics.add(segmenter.count(pixels.to(device), target.to(device), images.num_classes).cpu())
                bar.update(len(pixels))
    return metrics.compute()


def as_text(scores: dict, classes: list[str] | None = None) -> str:
    """The scores as lines for a person, with what the constant predictor gets beside the accuracy."""
    lines = [
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
