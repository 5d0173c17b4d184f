"""Random crops for training. They are a function of (seed, epoch), so that a run can start at any
step.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import DataError
from ..signals import ignore_in_worker
from .base import ImageSet, InMemory
from .scenes import SceneCrops
from .threaded import read_ahead

IN_MEMORY_BYTES = 256 * 2**20  # sets up to this size are decoded once
MAX_WORKERS = 4


class Crop(NamedTuple):
    """A crop of image `index`, with its corner at the fractions y and x of the free rows and
    columns.
    """

    index: int
    y: float
    x: float


class Part(NamedTuple):
    """The images `first` to `stop` of the `total` images of a step."""

    first: int
    stop: int
    total: int

    @property
    def inside(self) -> slice:
        return slice(self.first, self.stop)

    @property
    def share(self) -> float:
        """The part's images / those of the step."""
        return (self.stop - self.first) / self.total

    @classmethod
    def of(cls, total: int, number: int, parts: int) -> "Part":
        """Part `number` of `parts`, whose sizes differ by one at most."""
        return cls(total * number // parts, total * (number + 1) // parts, total)


class Batch(NamedTuple):
    """images [B, c, crop, crop] of the set's dtype; valid bool [B, crop, crop], or None when every
    pixel is; the errors of images that were found damaged so far (`data.damaged`).
    """

    images: torch.Tensor
    valid: torch.Tensor | None
    damaged: tuple[str, ...] = ()


class CropSampler(Sampler):
    """Batches of crops from step `start` to `stop`; each epoch is a new permutation of the set's
    `size` images, or has their `order` of (seed, epoch) where that gives one.

    Args:
        size: images of the set.
        batch_size: images of a step.
        least: fewest images of a step; a smaller last batch of an epoch is dropped.
        seed: of the permutations and the crops.
        start, stop: the first step, and the one after the last.
        rank, ranks: this process and the number of processes that share every step.
        accumulate: parts of a step that go through the network in turns. Each is shared by the
            ranks. Batches are this rank's share of each part.
        views: an image has this many crops, which are the same for every seed. None: each epoch
            draws new ones.
    """

    order: Callable[[int, int], np.ndarray | None] | None = None

    def __init__(
        self,
        size: int,
        batch_size: int,
        least: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        views: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.start, self.stop = size, batch_size, seed, start, stop
        self.rank, self.ranks, self.accumulate, self.views = rank, ranks, accumulate, views
        self.steps_per_epoch = steps_per_epoch(size, batch_size, least)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def parts(self) -> Iterator[Part]:
        """The part of its step that each batch is."""
        for step in range(self.start, self.stop):
            total = min(self.batch_size, self.size - step % self.steps_per_epoch * self.batch_size)
            for turn in range(self.accumulate):
                yield Part.of(total, turn * self.ranks + self.rank, self.ranks * self.accumulate)

    def __iter__(self) -> Iterator[list[Crop]]:
        epoch, parts = -1, self.parts()
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                rng = np.random.default_rng((self.seed, epoch))
                order, corners = rng.permutation(self.size), rng.random((self.size, 2))
                own = self.order and self.order(self.seed, epoch)
                order = order if own is None else own
                if self.views is not None:
                    corners = np.random.default_rng(epoch % self.views).random((self.size, 2))[order]
            first = step % self.steps_per_epoch * self.batch_size
            for _ in range(self.accumulate):
                part = next(parts)
                chosen = slice(first + part.first, first + part.stop)
                yield [Crop(int(i), *map(float, c)) for i, c in zip(order[chosen], corners[chosen], strict=True)]


def steps_per_epoch(size: int, batch_size: int, least: int) -> int:
    """Batches in a pass over `size` images; a last one of fewer than `least` images is dropped."""
    return size // batch_size + (size % batch_size >= least)


class CropSet(Dataset):
    """Cuts whole batches of crops out of an image set.

    Args:
        images: the set. crop: side of the crops in pixels.
        labelled: pixels without ground truth are not valid (loss mask "gt").
    """

    def __init__(self, images: ImageSet, crop: int, labelled: bool = False) -> None:
        self.images, self.crop, self.labelled = images, crop, labelled

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, crops: list[Crop]) -> Batch | DataError:
        indices, y, x = (np.array(column) for column in zip(*crops, strict=True))
        try:
            batch, valid = self.images.crops(indices, y, x, self.crop, self.labelled)
        except DataError as error:  # returned, since a worker process would wrap it in a traceback's text
            return error
        damaged = tuple(getattr(self.images, "damaged", {}).values())
        return Batch(torch.from_numpy(batch), None if valid is None else torch.from_numpy(valid), damaged)

    def pinned(self, crops: list[Crop]) -> Batch | DataError:
        """The batch in memory from which a GPU copies without waiting."""
        found = self.__getitems__(crops)
        if isinstance(found, DataError):
            return found
        return found._replace(
            images=found.images.pin_memory(), valid=None if found.valid is None else found.valid.pin_memory()
        )


def held_in_memory(images: ImageSet) -> ImageSet:
    """The set with its images decoded once if they fit in IN_MEMORY_BYTES, else the set itself."""
    if isinstance(images, InMemory) or images.in_process or images.num_bytes > IN_MEMORY_BYTES:
        return images
    if isinstance(images, SceneCrops):
        return images.over(held_in_memory(images.source))
    with ThreadPoolExecutor() as pool:
        return InMemory(images, list(pool.map(images.scaled, range(len(images)))))


def crop_loader(
    images: ImageSet, crop: int, sampler: CropSampler, workers: int, labelled: bool = False
) -> Iterable[Batch | DataError]:
    """The sampler's batches in the set's order, read ahead by `workers` processes (0: by none);
    `labelled` as for CropSet. Large images are read by threads, which share what is decoded.
    """
    cut, sampler.order = CropSet(images, crop, labelled), images.epoch_order
    if images.windowed and workers:
        return read_ahead(cut.pinned if torch.cuda.is_available() else cut.__getitems__, sampler, workers)
    return DataLoader(
        cut,
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=ignore_in_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Batch | DataError) -> Batch | DataError:
    return batch


def channel_statistics(images: ImageSet, limit: int = 1000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], over the valid pixels of at most
    `limit` images.

    The images are spread evenly over the set.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int))
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for index in chosen:
        stored, valid = images.scaled(int(index))
        pixels = images.scaling.to_float(stored).double().flatten(1)
        if valid is not None:
            pixels = pixels[:, torch.from_numpy(valid.ravel())]
        count += pixels.shape[1]
        total, squares = total + pixels.sum(1), squares + pixels.square().sum(1)
    mean = total / max(count, 1)
    std = (squares / max(count, 1) - mean.square()).clamp_min(0).sqrt()
    # A constant channel carries no information; its scale is left alone, which avoids a division by
    # 0.
    return mean.tolist(), torch.where(std > 1e-6, std, 1.0).tolist()
