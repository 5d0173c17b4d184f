"""Batches of crops for training, and what a recipe is told of the images."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from .config import Settings
from .data import ImageSet
from .data.base import InMemory
from .data.crops import CropSampler, channel_statistics, crop_loader, steps_per_epoch
from .errors import DataError
from .recipe import DataInfo
from .recipe.sample import SAMPLE_CROPS, Sample
from .recipe.smoothing import noise_share

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
    images: ImageSet, settings: Settings, device: torch.device, start: int, stop: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Crops of the steps from `start` to `stop`, on the device, before augmentation.

    Yields:
        images, float [B, c, crop, crop] in [0, 1], and mask, bool [B, crop, crop] of the pixels
        that count, or None.

    Raises:
        DataError: an image cannot be read.
    """
    views = FROZEN_VIEWS if settings.freeze_backbone else None
    sampler = CropSampler(len(images), settings.batch_size, settings.least_batch, settings.seed, start, stop, views)
    for batch in crop_loader(images, settings.crop, sampler, workers, settings.loss_mask == "gt"):
        if isinstance(batch, DataError):  # from a worker process
            raise batch
        pixels = images.scaling.to_float(batch.images.to(device, non_blocking=True))
        yield pixels, None if batch.valid is None else batch.valid.to(device, non_blocking=True)


def sample_of(images: ImageSet, settings: Settings, device: torch.device) -> Sample:
    """The first crops of the first epoch: at least SAMPLE_CROPS, rounded up to whole batches, at
    most the epoch.
    """
    steps = min(batches_per_epoch(images, settings), -(-SAMPLE_CROPS // settings.batch_size))
    return Sample(lambda: crops(images, settings, device, 0, steps))


def batches_per_epoch(images: ImageSet, settings: Settings) -> int:
    """Steps of a pass over the images."""
    return steps_per_epoch(len(images), settings.batch_size, settings.least_batch)


def worker_count(images: ImageSet, settings: Settings) -> int:
    """Processes that read crops: none where the images are in memory."""
    if settings.workers is not None:
        return settings.workers
    return 0 if isinstance(images, InMemory) or images.in_process else min(MAX_WORKERS, os.cpu_count() or 1)
