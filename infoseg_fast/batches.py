"""Batches of crops for training, and the description of the images for a recipe."""

import functools
import logging
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .config import Settings
from .data import ImageSet
from .data.base import InMemory
from .data.crops import CropSampler, Part, channel_statistics, crop_loader, steps_per_epoch
from .data.resident import ResidentSet, fits
from .distributed.world import World
from .errors import DataError
from .position import position_is_informative, with_position
from .recipe import DataInfo
from .recipe.sample import SAMPLE_CROPS, Sample
from .recipe.smoothing import noise_share

logger = logging.getLogger("infoseg_fast")

MAX_WORKERS = 4
FROZEN_VIEWS = 2  # crops of an image for a frozen backbone, whose features are cached


def data_info(images: ImageSet, settings: Settings) -> DataInfo:
    """The description of the training images for a recipe."""
    mean, std = channel_statistics(images)
    return DataInfo(
        images.channels, settings.classes, images.classes, mean, std, images.scaling, settings.scale,
        images.raw_scale, noise_share(images), settings.reading, position_is_informative(settings.position, images),
    )  # fmt: skip


Stored = tuple[Tensor | None, ...]  # arguments of `Crops.decoded` for a part of a step, on the device


class Crops:
    """The crops of the steps from `start` to `stop` on the device, before augmentation. Iteration
    gives the arguments of `decoded`, and the part of the step that these crops are.

    A GPU gets the places of the crops of small 8-bit sets and cuts them. Otherwise the host cuts
    the crops. Nothing waits for the device.

    Args:
        images: the set.
        settings: the settings of the run.
        device: device of the crops.
        start, stop: the first step, and the step after the last.
        world: the ranks that share each step. It comes in `accumulate` parts, and worker processes
            read ahead. None: each step is one batch, which this process reads.

    Raises:
        DataError: an image cannot be read, from iteration.
    """

    def __init__(
        self,
        images: ImageSet,
        settings: Settings,
        device: torch.device,
        start: int,
        stop: int,
        world: World | None = None,
    ) -> None:
        views = FROZEN_VIEWS if settings.freeze_backbone else None
        shared = (world.rank, world.size, settings.accumulate) if world else (0, 1, 1)
        self.sampler = CropSampler(
            len(images), settings.batch_size, settings.least_batch, settings.seed, start, stop, *shared, views
        )
        self.sampler.order = images.epoch_order
        self.images, self.settings, self.device = images, settings, device
        self.workers = worker_count(images, settings) if world else 0
        self.labelled = settings.loss_mask == "gt"
        self.resident = ResidentSet(images, settings.crop, self.labelled, device) if fits(images, device) else None

    def __iter__(self) -> Iterator[tuple[Stored, Part]]:
        if self.resident is None:
            yield from zip(self._loaded(), self.sampler.parts(), strict=False)
            return
        self._log(getattr(self.images, "damaged", {}).values())
        for places, part in zip(map(self.resident.places, self.sampler), self.sampler.parts(), strict=False):
            yield (places.pin_memory().to(self.device, non_blocking=True),), part

    def decoded(self, *stored: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The crops, float [B, c, crop, crop] in [0, 1], and the pixels that count, bool [B, crop,
        crop]. None: all count. The position of the pixels is a further channel if the set has it.
        """
        if self.resident:
            (pixels, valid), places = self.resident.cut(*stored), self.resident.rows(*stored)
        else:
            pixels, valid, places = stored
        images = self.images.scaling.to_float(pixels)
        return with_position(images, places) if self.images.position else images, valid

    def _loaded(self) -> Iterator[Stored]:
        for batch in crop_loader(self.images, self.settings.crop, self.sampler, self.workers, self.labelled):
            if isinstance(batch, DataError):  # from a worker process
                raise batch
            self._log(batch.damaged)
            given = batch.images, batch.valid, batch.places
            yield tuple(None if x is None else x.to(self.device, non_blocking=True) for x in given)

    def _log(self, faults: Iterable[str]) -> None:
        """Name the damaged images that were not named yet, by this or other `Crops` of the set."""
        named: set[str] = getattr(self.images, "named", set())
        for fault in faults:
            if fault not in named:
                logger.warning("skipped: %s", fault)
                named.add(fault)


def crops(
    images: ImageSet, settings: Settings, device: torch.device, start: int, stop: int
) -> Iterator[tuple[Tensor, Tensor | None, Part]]:
    """The decoded crops of `Crops`, with their parts."""
    source = Crops(images, settings, device, start, stop)
    for stored, part in source:
        yield *source.decoded(*stored), part


def sample_of(images: ImageSet, settings: Settings, device: torch.device) -> Sample:
    """The first batches of the first epoch, with at least SAMPLE_CROPS crops or the whole epoch."""
    steps = min(batches_per_epoch(images, settings), -(-SAMPLE_CROPS // settings.batch_size))
    spread = images.spread()
    read = functools.partial(crops, spread, settings, device, 0, steps)
    return Sample(lambda: ((pixels, mask) for pixels, mask, _ in read()), images.position)


def stems_of_step(images: ImageSet, settings: Settings, step: int) -> list[str]:
    """The stems of the images of step number `step`, from 0."""
    sampler = CropSampler(len(images), settings.batch_size, settings.least_batch, settings.seed, step, step + 1)
    sampler.order = images.epoch_order
    return [images.stems[crop.index] for batch in sampler for crop in batch]


def batches_per_epoch(images: ImageSet, settings: Settings) -> int:
    """Number of steps of a pass over the images."""
    return steps_per_epoch(len(images), settings.batch_size, settings.least_batch)


def worker_count(images: ImageSet, settings: Settings) -> int:
    """Number of processes, or of threads for large images, that read crops: 0 for images in memory."""
    if settings.workers is not None:
        return settings.workers
    return 0 if isinstance(images, InMemory) or images.in_process else min(MAX_WORKERS, os.cpu_count() or 1)
