"""Batches of crops for training, and what a recipe is told of the images."""

import logging
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from .config import Settings
from .data import ImageSet
from .data.base import InMemory
from .data.crops import CropSampler, Part, channel_statistics, crop_loader, steps_per_epoch
from .distributed.world import World
from .errors import DataError
from .recipe import DataInfo
from .recipe.sample import SAMPLE_CROPS, Sample
from .recipe.smoothing import noise_share

logger = logging.getLogger("infoseg_fast")

MAX_WORKERS = 4
# Crops of an image for a frozen backbone, whose features are computed once and cached.
FROZEN_VIEWS = 2


def data_info(images: ImageSet, settings: Settings) -> DataInfo:
    """What a recipe is told of the training images."""
    mean, std = channel_statistics(images)
    return DataInfo(
        images.channels, settings.classes, images.classes, mean, std, images.scaling, settings.scale,
        images.raw_scale, noise_share(images), settings.reading,
    )  # fmt: skip


def crops(
    images: ImageSet,
    settings: Settings,
    device: torch.device,
    start: int,
    stop: int,
    workers: int = 0,
    world: World | None = None,
) -> Iterator[tuple[Tensor, Tensor | None, Part]]:
    """Crops of the steps from `start` to `stop`, on the device, before augmentation.

    Args:
        world: the ranks that share a step, which then comes in `accumulate` parts. None: every step
            is one batch.

    Yields:
        images, float [B, c, crop, crop] in [0, 1]; mask, bool [B, crop, crop] of the pixels that
        count, or None; and the part of the step that these images are.

    Raises:
        DataError: an image cannot be read.
    """
    views = FROZEN_VIEWS if settings.freeze_backbone else None
    shared = (world.rank, world.size, settings.accumulate) if world else (0, 1, 1)
    sampler = CropSampler(
        len(images), settings.batch_size, settings.least_batch, settings.seed, start, stop, *shared, views
    )
    named: set[str] = set()
    loader = crop_loader(images, settings.crop, sampler, workers, settings.loss_mask == "gt")
    for batch, part in zip(loader, sampler.parts(), strict=False):
        if isinstance(batch, DataError):  # from a worker process
            raise batch
        for fault in set(batch.damaged) - named:
            logger.warning("skipped: %s", fault)
        named.update(batch.damaged)
        pixels = images.scaling.to_float(batch.images.to(device, non_blocking=True))
        yield pixels, None if batch.valid is None else batch.valid.to(device, non_blocking=True), part


def sample_of(images: ImageSet, settings: Settings, device: torch.device) -> Sample:
    """The first crops of the first epoch: at least SAMPLE_CROPS, rounded up to whole batches, at
    most the epoch.
    """
    steps = min(batches_per_epoch(images, settings), -(-SAMPLE_CROPS // settings.batch_size))
    spread = images.spread()
    return Sample(lambda: ((pixels, mask) for pixels, mask, _ in crops(spread, settings, device, 0, steps)))


def stems_of_step(images: ImageSet, settings: Settings, step: int) -> list[str]:
    """The stems of the images of step number `step`."""
    sampler = CropSampler(len(images), settings.batch_size, settings.least_batch, settings.seed, step, step + 1)
    sampler.order = images.epoch_order
    return [images.stems[crop.index] for batch in sampler for crop in batch]


def batches_per_epoch(images: ImageSet, settings: Settings) -> int:
    """Steps of a pass over the images."""
    return steps_per_epoch(len(images), settings.batch_size, settings.least_batch)


def worker_count(images: ImageSet, settings: Settings) -> int:
    """Processes, or threads for large images, that read crops: none where the images are in memory."""
    if settings.workers is not None:
        return settings.workers
    return 0 if isinstance(images, InMemory) or images.in_process else min(MAX_WORKERS, os.cpu_count() or 1)
