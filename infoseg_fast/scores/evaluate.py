"""Scoring of a segmenter on a set, image by image. Memory does not grow with the number of images."""

import copy
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
from ..data.images import IGNORE
from ..distributed.world import rank, ranks
from ..errors import DataError
from ..ops.confusion_matrix import count_pairs
from ..segmenter import Segmenter, raise_for
from .metrics import ClusterMetrics

BATCH_PIXELS = 2**19  # largest batch; a larger image is a batch of its own
READ_AHEAD = 2  # batches
SCENE_PIXELS = 2**24  # size of an image from which it is read by windows, if its format allows it


def batches(images: ImageSet) -> Iterator[list[int]]:
    """Batches of indices: consecutive images of one size with at most BATCH_PIXELS pixels. An image
    that may lack data is a batch of its own.
    """
    chosen: list[int] = []
    for index, size in enumerate(images.sizes):
        full = (len(chosen) + 1) * size[0] * size[1] > BATCH_PIXELS
        alone = any(map(images.may_lack_data, [*chosen[:1], index]))
        if chosen and (full or alone or size != images.sizes[chosen[0]]):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def evaluate(segmenter: Segmenter, images: ImageSet, device: torch.device, progress: bool = False) -> dict:
    """Segment every image at its native size and score the labels.

    Nothing waits for a GPU between the batches, so that wrong values of images and labels are found
    at the end.

    Args:
        segmenter: makes the labels. The images get its scaling.
        images: the set.
        device: device of the segmenter.
        progress: whether to show a progress bar.

    Returns:
        The result of `score`.

    Raises:
        DataError: the set has no labels, its images have other channels or values than those of the
            training, an image or a label cannot be read, or a label is no class.
        ValueError: a value of an image is not finite.
    """
    trained = segmenter.labelling.data
    if images.channels != trained.channels or not trained.scaling.accepts(images.dtype):
        raise DataError(
            f"{images.name} has images of {images.channels} channels of {images.dtype}; the run was trained on "
            f"{trained.channels} channels of {trained.scaling.dtype}"
        )
    faults = torch.zeros(2, dtype=torch.int64, device=device)

    def count(pixels: Tensor, target: Tensor) -> Tensor:
        # The segmenter scales the images, as in prediction.
        given = pixels.to(device, non_blocking=True), target.to(device, non_blocking=True)
        counts, *found = segmenter.count_without_waiting(*given, images.num_targets)
        faults.add_(torch.stack(found))
        return counts

    def count_scene(index: int) -> Tensor:
        plan = segmenter.plan(images.sizes[index])
        windows = (images.read_window(index, r.start, c.start, len(r), len(c)) for r, c in plan.regions())
        bands = (
            segmenter.band(pixels, place, valid) for place, (pixels, valid) in zip(plan.regions(), windows, strict=True)
        )
        counts = torch.zeros(segmenter.num_clusters, images.num_targets, dtype=torch.int64, device=device)
        for (rows, columns), labels, _ in segmenter.parts(plan, bands):
            if len(rows) and len(columns):
                target = images.label_part(index, rows.start, columns.start, len(rows), len(columns))
                truth = torch.from_numpy(np.ascontiguousarray(target)).to(device)[None]
                truth = truth.masked_fill(labels == IGNORE, IGNORE)  # pixels without data
                found, outside = count_pairs(labels, truth, len(counts), images.num_targets, IGNORE)
                counts += found
                if outside is not None:  # a CPU raises
                    faults[0] += outside
        return counts

    images.scaling = trained.scaling
    images = copy.copy(images)
    images.scale = 1.0  # the segmenter scales the images
    by_windows = count_scene if segmenter.num_clusters <= IGNORE else None  # with 256 clusters, label 255 is a cluster
    scores = score(count, segmenter.num_clusters, images, progress, by_windows)
    raise_for(*faults.tolist())
    return scores


def score(
    count: Callable[[Tensor, Tensor], Tensor],
    num_clusters: int,
    images: ImageSet,
    progress: bool = False,
    count_scene: Callable[[int], Tensor] | None = None,
) -> dict:
    """Scores of a labelling function, with one matching of clusters to classes for the whole set.

    Under torch.distributed every rank must call it. A rank counts its share of the images, and all
    ranks get the scores of all images.

    Args:
        count: gives the confusion matrix int64 [num_clusters, images.num_targets] of pixels, float
            [B, c, H, W] in [0, 1], and a target, uint8 [B, H, W], without targets of 255.
        num_clusters: number of clusters.
        images: the set.
        progress: whether to show a progress bar.
        count_scene: gives the confusion matrix of an image by its index, for an image that is large
            or may lack data. It reads windows, so that memory grows only with the label map.

    Returns:
        The dict of `ClusterMetrics.compute`, with None instead of NaN so that its JSON is strict.
        For a set with a protocol, "protocol" has the facts that are reported with the scores.

    Raises:
        DataError: the set has no labels, or a label is no class.
    """
    if not images.has_labels:
        raise DataError(f"{images.name} has no ground truth: it needs a labels/ folder that covers the split")
    assert images.num_classes is not None  # known if there are labels
    counts = torch.zeros(num_clusters, images.num_targets, dtype=torch.int64, device="cpu")

    def is_scene(chosen: list[int]) -> bool:
        rows, columns = images.sizes[chosen[0]]
        large = images.windowed and rows * columns > SCENE_PIXELS
        return count_scene is not None and images.scale == 1 and (large or images.may_lack_data(chosen[0]))

    def read(chosen: list[int]) -> tuple[Tensor, Tensor] | None:
        if is_scene(chosen):
            return None
        pixels = images.scaling.to_float(np.stack([images.native_image(index) for index in chosen]))
        target = torch.from_numpy(np.stack([checked_target(images, index) for index in chosen]))
        pinned = torch.cuda.is_available()  # a GPU copies from pinned memory without waiting
        return (pixels.pin_memory(), target.pin_memory()) if pinned else (pixels, target)

    with ThreadPoolExecutor(1) as reader, tqdm(total=len(images), desc="evaluating", disable=not progress) as bar:
        waiting = []
        for chosen in [*islice(batches(images), rank(), None, ranks()), *[None] * READ_AHEAD]:
            if chosen is not None:
                waiting.append((chosen, reader.submit(read, chosen)))
            if waiting and (len(waiting) > READ_AHEAD or chosen is None):
                indices, reading = waiting.pop(0)
                given = reading.result()
                del reading  # frees the pixels
                found = count(*given) if given else count_scene(indices[0])  # type: ignore[misc]
                del given
                counts = counts.to(found.device) + found
                bar.update(len(indices))
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


def checked_target(images: ImageSet, index: int) -> np.ndarray:
    """The target of an image. Raise DataError for a value that is no class."""
    target = images.target(index)
    wrong = target[(target >= images.num_targets) & (target != IGNORE)]
    if len(wrong):
        raise DataError(
            f"the label map of image {images.stems[index]} of {images.name} holds {wrong[0]}; values below "
            f"{images.num_targets} and {IGNORE} are accepted"
        )
    return target


def without_nan(value: Any) -> Any:
    """The value with None instead of NaN, in nested dicts and lists, for strict JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def add_training(scores: dict, loss_mask: str, checkpoint: str) -> None:
    """Add the loss mask and the rule that chose the checkpoint to the protocol of the scores, if they
    have one.
    """
    if "protocol" in scores:
        rule = "last step" if checkpoint == LAST else "lowest training loss"
        scores["protocol"] |= {"loss_mask": loss_mask, "epoch_rule": f"{rule} (no label chose it)"}


def as_text(scores: dict, classes: list[str] | None = None) -> str:
    """The scores as lines of text, with the accuracy of the constant predictor."""
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
