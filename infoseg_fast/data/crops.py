"""Random crops for training. They depend only on the seed and the epoch, so that a run can start at
any step.
"""

import sys
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

IN_MEMORY_BYTES = 256 * 2**20  # largest set that is decoded once and kept in memory
STATISTICS_IMAGES = 1000


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
        """Number of images of the part, divided by that of the step."""
        return (self.stop - self.first) / self.total

    @classmethod
    def of(cls, total: int, number: int, parts: int) -> "Part":
        """Part `number` of `parts`, whose sizes differ by at most one."""
        return cls(total * number // parts, total * (number + 1) // parts, total)


class Batch(NamedTuple):
    """A batch of crops.

    Attributes:
        images: [B, c, crop, crop] in the set's dtype.
        valid: bool [B, crop, crop], the pixels that count. None: all count.
        places: int64 [B, 2], `ImageSet.place` of each crop.
        damaged: errors of the damaged images that were found so far (`data.damaged`).
    """

    images: torch.Tensor
    valid: torch.Tensor | None
    places: torch.Tensor
    damaged: tuple[str, ...] = ()


class CropSampler(Sampler):
    """Batches of crops for the steps from `start` to `stop`. Each epoch has a new permutation of the
    images, or the order that the attribute `order` gives for (seed, epoch).

    Args:
        size: number of images of the set.
        batch_size: number of images of a step.
        least: least number of images of a step. A smaller last batch of an epoch is dropped.
        seed: seed of the permutations and the crops.
        start, stop: the first step, and the step after the last.
        rank, ranks: number of this process, and number of processes that share every step.
        accumulate: number of parts of a step that go through the network in turns. A batch is this
            rank's share of a part.
        views: number of crops of an image, the same for every seed. None: each epoch draws new
            crops.
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
        """For each batch the part of its step."""
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
    """Number of batches in a pass over `size` images, without a last one of fewer than `least`."""
    return size // batch_size + (size % batch_size >= least)


class CropSet(Dataset):
    """Cuts whole batches of crops out of an image set.

    Args:
        images: the set.
        crop: side of the crops, pixels.
        labelled: whether pixels without ground truth do not count (loss mask "gt").
    """

    def __init__(self, images: ImageSet, crop: int, labelled: bool = False) -> None:
        self.images, self.crop, self.labelled = images, crop, labelled

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, crops: list[Crop]) -> Batch | DataError:
        indices, y, x = (np.array(column) for column in zip(*crops, strict=True))
        try:
            batch, valid = self.images.crops(indices, y, x, self.crop, self.labelled)
        except DataError as error:  # returned: a worker process would raise it with its traceback as text
            return error
        damaged = tuple(getattr(self.images, "damaged", {}).values())
        places = torch.tensor([self.images.place(*crop, self.crop) for crop in crops])
        return Batch(torch.from_numpy(batch), None if valid is None else torch.from_numpy(valid), places, damaged)

    def pinned(self, crops: list[Crop]) -> Batch | DataError:
        """The batch in pinned memory, from which a GPU copies without waiting."""
        found = self.__getitems__(crops)
        if isinstance(found, DataError):
            return found
        return found._replace(
            images=found.images.pin_memory(),
            valid=None if found.valid is None else found.valid.pin_memory(),
            places=found.places.pin_memory(),
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
    """The sampler's batches, read ahead by worker processes. Threads read large images, since they
    share decoded parts.

    Args:
        images, crop, labelled: as in `CropSet`.
        sampler: gets the set's `epoch_order` as its order.
        workers: number of processes or threads. 0: this process reads.
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
        # Forked processes share the images of this one, and do not import the user's script again.
        # From Python 3.14 on they are not the default.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def _as_it_is(batch: Batch | DataError) -> Batch | DataError:
    return batch


def channel_statistics(images: ImageSet) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], over the pixels with data of at most
    STATISTICS_IMAGES images. The standard deviation of a constant channel is given as 1.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for index in images.evenly_spread(STATISTICS_IMAGES):
        stored, valid = images.scaled(index)
        pixels = images.scaling.to_float(stored).double().flatten(1)
        if valid is not None:
            pixels = pixels[:, torch.from_numpy(valid.ravel())]
        count += pixels.shape[1]
        total, squares = total + pixels.sum(1), squares + pixels.square().sum(1)
    mean = total / max(count, 1)
    std = (squares / max(count, 1) - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std > 1e-6, std, 1.0).tolist()
