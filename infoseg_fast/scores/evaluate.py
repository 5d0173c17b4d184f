"""Scoring of a segmenter on a set, image by image: memory does not grow with their number."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import LAST
from ..data import prepared
from ..data.base import ImageSet
from ..distributed.world import rank, ranks
from ..errors import DataError
from ..segmenter import Segmenter, raise_for
from .metrics import ClusterMetrics

BATCH_PIXELS = 2**19  # most pixels of a batch; a larger image is a batch of its own
READ_AHEAD = 2  # batches


def batches(images: ImageSet) -> Iterator[list[int]]:
    """Indices of consecutive images of one size, at most BATCH_PIXELS together."""
    chosen: list[int] = []
    for index, size in enumerate(images.sizes):
        if chosen and (size != images.sizes[chosen[0]] or (len(chosen) + 1) * size[0] * size[1] > BATCH_PIXELS):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def evaluate(segmenter: Segmenter, images: ImageSet, device: torch.device, progress: bool = False) -> dict:
    """Segment every image at its native size and score the labels; returns what `score` returns.

    Between the batches nothing waits for a GPU, which counts. What is wrong with a value of an image
    or a label is found at the end.
    """
    faults = torch.zeros(2, dtype=torch.int64, device=device)

    def count(pixels: Tensor, target: Tensor) -> Tensor:
        # The segmenter scales the images, as in prediction.
        given = pixels.to(device, non_blocking=True), target.to(device, non_blocking=True)
        counts, *found = segmenter.count_without_waiting(*given, images.num_targets)
        faults.add_(torch.stack(found))
        return counts

    images.scaling = segmenter.labelling.data.scaling
    scores = score(count, segmenter.num_clusters, images, progress)
    raise_for(*faults.tolist())
    return scores


def score(
    count: Callable[[Tensor, Tensor], Tensor], num_clusters: int, images: ImageSet, progress: bool = False
) -> dict:
    """Scores of a labelling function, with one matching of clusters to classes for the whole set.

    Under torch.distributed every rank must call it: it counts its share of the images, and all get
    the scores of all images.

    Args:
        count: maps pixels, float [B, c, H, W] in [0, 1], and target, uint8 [B, H, W], to joint
            counts, int64 [num_clusters, images.num_targets]; it leaves out targets of 255.

    Returns:
        The dict of `ClusterMetrics.compute` with None instead of NaN, so that its JSON is strict. A
        set with a protocol adds "protocol": what must be reported beside the scores.

    Raises:
        DataError: the set has no labels.
    """
    if not images.has_labels:
        raise DataError(f"{images.name} has no ground truth: it needs a labels/ folder that covers the split")
    assert images.num_classes is not None  # known where there are labels
    counts = torch.zeros(
        num_clusters, images.num_targets, dtype=torch.int64, device="cpu"
    )  # moves to the device that counts

    def read(chosen: list[int]) -> tuple[Tensor, Tensor]:
        pixels = images.scaling.to_float(np.stack([images.native_image(index) for index in chosen]))
        target = torch.from_numpy(np.stack([images.target(index) for index in chosen]))
        pinned = torch.cuda.is_available()  # a GPU copies from such memory without waiting
        return (pixels.pin_memory(), target.pin_memory()) if pinned else (pixels, target)

    with ThreadPoolExecutor(1) as reader, tqdm(total=len(images), desc="evaluating", disable=not progress) as bar:
        waiting = []
        for chosen in [*islice(batches(images), rank(), None, ranks()), *[None] * READ_AHEAD]:
            if chosen is not None:
                waiting.append(reader.submit(read, chosen))
            if waiting and (len(waiting) > READ_AHEAD or chosen is None):
                pixels, target = waiting.pop(0).result()
                found = count(pixels, target)
                counts = counts.to(found.device) + found
                bar.update(len(pixels))
    counts = counts.cpu()
    if ranks() > 1:
        merged = ClusterMetrics(num_clusters, images.num_targets)
        merged.add(counts)
        merged.sync()
        counts = merged.counts
    metrics = ClusterMetrics(num_clusters, images.num_classes)
    metrics.add(images.folded(counts.numpy()))
    scores, protocol = metrics.compute(), images.protocol(counts.numpy())
    return without_nan(scores | ({"protocol": protocol} if protocol else {}))


def without_nan(value: Any) -> Any:
    """The same dicts, lists and numbers with None instead of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def add_training(scores: dict, loss_mask: str, checkpoint: str) -> None:
    """Add the loss mask and the rule that chose the checkpoint to the scores' protocol, if any."""
    if "protocol" in scores:
        rule = "last step" if checkpoint == LAST else "lowest training loss"
        scores["protocol"] |= {"loss_mask": loss_mask, "epoch_rule": f"{rule} (no label chose it)"}


def as_text(scores: dict, classes: list[str] | None = None) -> str:
    """The scores as lines of text, with the constant predictor beside the accuracy."""
    if not scores["num_pixels"]:
        return "no pixel has ground truth: no scores"
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
        shown = "    -" if iou is None else f"{iou:.3f}"
        lines.append(f"  {name:<24} share {share:.3f}   IoU {shown}   cluster {', '.join(clusters) or 'none'}")
    return "\n".join(lines)
