"""`Segmenter`: label maps of whole images of any size, in bounded memory (`tile_labels`)."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import CHECKPOINTS, LAST
from .config import pick_device
from .data.base import scaled_size
from .data.images import IGNORE, described_with, read_with
from .encoding import Area
from .errors import DataError
from .ops.confusion_matrix import count_pairs
from .recipe.labelling import Labelling
from .reference.confusion_matrix import raise_out_of_range
from .run_folder import RunFolder
from .tile_labels import Part, TileLabeller
from .tiling import Band, Plan

_process = os.getpid()  # the process that imported this module, or the forked one that computes
BATCH_PIXELS = 2**20  # pixels of the images that are segmented together


class Segmenter:
    """Makes label maps of whole images of any size.

    Images are segmented in tiles, on which the label maps do not depend.

    Args:
        labelling: turns images into labels. Its device is the segmenter's.
        mapping: class of each cluster, -1 for none. None: no evaluation has found it.
        class_names: names of the classes of the mapping, or None.
    """

    def __init__(
        self, labelling: Labelling, mapping: list[int] | None = None, class_names: list[str] | None = None
    ) -> None:
        self.labelling, self.mapping, self.class_names = labelling, mapping, class_names
        self.scale = labelling.data.scale  # factor by which images are resized before they enter the network
        self.tiles = TileLabeller(labelling)

    @property
    def num_clusters(self) -> int:
        """K, the number of labels."""
        return self.labelling.num_clusters

    @property
    def tiled(self) -> bool:
        """Whether images are segmented in tiles. Else the network gets the whole image."""
        return self.tiles.tiled

    def with_clusters(self, number: int) -> Segmenter:
        """A segmenter with the same network whose label maps have `number` clusters. They are
        matched to no class.

        Raises:
            DataError: the run has no over-clusters, or `number` is not from 2 to their number.
        """
        return self if number == self.num_clusters else Segmenter(self.labelling.with_clusters(number))

    def segment(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label maps of whole images.

        Args:
            images: float [B, c, H_img, W_img] in [0, 1], any size, on the model's device.
            size: (rows, columns) of the label maps. None: the size of the images.

        Returns:
            Clusters 0 .. K - 1, [B, *size] uint8.

        Raises:
            TypeError: images is no tensor.
            ValueError: the shape, the dtype, the size or the number of channels is wrong, or a
                value is not finite.
        """
        images = self._checked(images)
        size = (images.shape[2], images.shape[3]) if size is None else _checked_size(size)
        labels = torch.empty(len(images), *size, dtype=torch.uint8, device=images.device)
        for images_of, chosen in self._batches(images):
            for part in self._parts_of(images_of, size):
                rows, columns = part.area
                labels[chosen, rows.start : rows.stop, columns.start : columns.stop] = part.labels
        return labels

    def segment_array(self, pixels: np.ndarray | Tensor, valid: np.ndarray | None = None) -> np.ndarray:
        """The label map of an image whose values are as a file stores them.

        Args:
            pixels: [c, rows, columns] or [rows, columns], in a dtype that the run accepts
                (`labelling.data.scaling`). They are scaled as the training images were. A pixel
                has no data where a masked array masks every channel, or a float is not finite.
            valid: bool [rows, columns], False where a pixel has no data. None: all pixels have
                data.

        Returns:
            [rows, columns] uint8; 255 where a pixel has no data.

        Raises:
            ValueError: the shape of pixels or valid, the number of channels or the dtype is wrong.
        """
        stored = pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
        stored = stored[None] if stored.ndim == 2 else stored
        if stored.ndim != 3 or 0 in stored.shape:
            raise ValueError(f"pixels must be [c, rows, columns], not {list(stored.shape)}")
        self.check_values(stored.shape[0], stored.dtype)
        valid = None if valid is None else np.asarray(valid, dtype=bool)
        if valid is not None and valid.shape != stored.shape[1:]:
            raise ValueError(f"valid must be bool {list(stored.shape[1:])}, not {list(valid.shape)}")
        if isinstance(pixels, np.ma.MaskedArray):
            present: np.ndarray = ~np.all(np.ma.getmaskarray(pixels).reshape(stored.shape), axis=0)
            valid = present if valid is None else valid & present
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            finite = np.isfinite(stored).all(axis=0)
            valid, stored = finite if valid is None else valid & finite, np.nan_to_num(stored, posinf=0, neginf=0)
        size = stored.shape[1], stored.shape[2]
        place = range(size[0]), range(size[1])
        band = self.band(stored.astype(stored.dtype.newbyteorder("="), copy=False), place, valid)
        return self._assembled(self.plan(size), itertools.repeat(band))

    def segment_file(self, path: str | os.PathLike) -> np.ndarray:
        """The label map of an image file, read as the training images were.

        Returns:
            [rows, columns] uint8; 255 where a pixel has no data.

        Raises:
            DataError: the file cannot be read, or its number of channels or its dtype is not that
                of the training images.
        """
        path, options = Path(os.fsdecode(path)), self.labelling.data.reading
        described = described_with(path, options)[0]
        plan = self.plan((described.height, described.width))
        return self._assembled(plan, self.read_bands(path, plan))

    def read_bands(self, path: Path, plan: Plan, page: int = 0) -> Iterator[Band]:
        """The parts of an image file in the order of the plan.

        Raises:
            DataError: see `segment_file`.
        """
        for rows, columns in plan.regions():
            window = rows.start, columns.start, len(rows), len(columns)
            image = read_with(path, self.labelling.data.reading, page, window)
            try:
                self.check_values(len(image.pixels), image.pixels.dtype)
            except ValueError as error:
                raise DataError(f"image {path}: {error}") from None
            yield self.band(image.pixels, (rows, columns), image.valid)

    def band(self, pixels: np.ndarray, place: Area, valid: np.ndarray | None) -> Band:
        """A part of an image, from stored values [c, rows, columns]."""
        data = self.labelling.data
        return Band(pixels, place, valid, data.scaling, data.channels)

    def check_values(self, channels: int, dtype: np.dtype) -> None:
        """Raise ValueError unless images of this number of channels and dtype can be segmented."""
        data = self.labelling.data
        if channels not in (1, data.channels):
            raise ValueError(f"{channels} channels; the run was trained on {data.channels}")
        if not data.scaling.accepts(dtype):
            raise ValueError(f"values of {np.dtype(dtype)}; the run was trained on {data.scaling.dtype}")

    def count(self, images: Tensor, target: Tensor, num_classes: int) -> Tensor:
        """The confusion matrix of the label maps at the size of the target, and the target.

        Args:
            images: as in `segment`.
            target: [B, H, W] uint8 on the device of the images, 255 where there is no ground truth.

        Returns:
            int64 [K, num_classes].

        Raises:
            TypeError, ValueError: as in `segment`, or the target has a value that is neither a
                class nor 255.
        """
        counts, outside, nonfinite = self.count_without_waiting(images, target, num_classes)
        raise_for(int(outside), int(nonfinite))
        return counts

    def count_without_waiting(self, images: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """`count` without waiting for the device.

        Returns:
            The confusion matrix, the number of target values out of range, and the number of values
            of the images that are not finite, all on the device of the images. `raise_for` takes
            the two numbers.
        """
        images = self._checked_shape(images)
        if not isinstance(target, Tensor):
            raise TypeError(f"target must be a tensor, not {type(target).__name__}")
        if target.dim() != 3 or len(target) != len(images):
            raise ValueError(f"target must be [{len(images)}, H, W], not {list(target.shape)}")
        if target.device.type == "cpu":  # the flat index of an error in a part would not be that in the target
            wrong = ((target < 0) | (target >= num_classes)) & (target != IGNORE)
            if wrong.any():
                raise_out_of_range(torch.zeros_like(target), target, self.num_clusters, num_classes, IGNORE)
        counts = torch.zeros(self.num_clusters, num_classes, dtype=torch.int64, device=images.device)
        outside = torch.zeros((), dtype=torch.int64, device=images.device)
        for images_of, chosen in self._batches(images):
            for part in self._parts_of(images_of, (target.shape[1], target.shape[2])):
                rows, columns = part.area
                truth = target[chosen, rows.start : rows.stop, columns.start : columns.stop]
                found, left_out = count_pairs(part.labels, truth, self.num_clusters, num_classes, IGNORE)
                counts += found
                if left_out is not None:  # a CPU raises
                    outside += left_out
        return counts, outside, (~torch.isfinite(images)).sum()

    def plan(
        self, native: tuple[int, int], size: tuple[int, int] | None = None, confidence: bool = False, images: int = 1
    ) -> Plan:
        """The order in which images of one size are read and labelled.

        Args:
            native: (rows, columns) of the images.
            size: (rows, columns) of the label maps. None: the size of the images.
            confidence: whether `parts` gives the confidence too.
            images: number of images that are segmented together.
        """
        return self.tiles.plan(native, scaled_size(native, self.scale), size or native, confidence, images)

    def parts(self, plan: Plan, bands: Iterator[Band], confidence: bool = False) -> Iterator[Part]:
        """The label maps part by part, see `TileLabeller.parts`."""
        compute_in_this_process()
        return self.tiles.parts(plan, bands, confidence)

    def _batches(self, images: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Groups of images that are segmented together, each with its indices."""
        number = max(1, BATCH_PIXELS // max(images.shape[2] * images.shape[3], 1))
        for first in range(0, len(images), number):
            chosen = slice(first, first + number)
            yield images[chosen], chosen

    def _parts_of(self, images: Tensor, size: tuple[int, int]) -> Iterator[Part]:
        place = range(images.shape[2]), range(images.shape[3])
        plan = self.plan((len(place[0]), len(place[1])), size, images=len(images))
        return self.parts(plan, itertools.repeat(Band(images, place)))

    def _assembled(self, plan: Plan, bands: Iterator[Band]) -> np.ndarray:
        labels = np.empty(plan.size, dtype=np.uint8)
        for part in self.parts(plan, bands):
            rows, columns = part.area
            labels[rows.start : rows.stop, columns.start : columns.stop] = part.labels[0].cpu().numpy()
        return labels

    def _checked(self, images: Tensor) -> Tensor:
        """The images as float32, all values finite."""
        images = self._checked_shape(images)
        raise_for(0, int((~torch.isfinite(images)).sum()))
        return images

    def _checked_shape(self, images: Tensor) -> Tensor:
        """The images as float32, whatever their values."""
        compute_in_this_process()
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, not {type(images).__name__} (segment_array takes stored values)")
        if images.dim() != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
            raise ValueError(f"images must be float [B, c, H_img, W_img], not {images.dtype} {list(images.shape)}")
        if images.shape[1] != self.labelling.data.channels:
            raise ValueError(f"images must have {self.labelling.data.channels} channels, not {images.shape[1]}")
        return images.float()


def raise_for(outside: int, nonfinite: int) -> None:
    """Raise ValueError if `Segmenter.count_without_waiting` counted a wrong value."""
    if nonfinite:
        raise ValueError("images must be finite, but hold NaN or infinity")
    if outside:
        raise ValueError(f"target holds {outside} values that are neither a class nor {IGNORE}")


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    try:
        rows, columns = map(operator.index, size)
    except (TypeError, ValueError):
        rows = columns = 0
    if min(rows, columns) < 1:
        raise ValueError(f"size must be two whole numbers (rows, columns) of at least 1, not {size!r}")
    return rows, columns


def compute_in_this_process() -> None:
    """Compute with one thread in a forked process, where OpenMP would wait for the threads of the
    parent process for ever.
    """
    global _process
    if os.getpid() != _process:
        _process = os.getpid()
        torch.set_num_threads(1)


def load(run: str | Path, checkpoint: str = LAST, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a training run.

    In a forked process PyTorch computes with one thread from then on, as it does from the first call
    of a segmenter that the process inherited.

    Args:
        run: the RUN folder.
        checkpoint: "last" or "best_loss" (lowest training loss).
        device: device of the segmenter.

    Raises:
        DataError: there is no such run, checkpoint or device, the checkpoint is damaged, or its
            layout version is another.
    """
    compute_in_this_process()
    return load_with_step(run, checkpoint, device)[0]


def load_with_step(run: str | Path, checkpoint: str, device: str | torch.device) -> tuple[Segmenter, int]:
    """`load`, and the step of the checkpoint."""
    folder = RunFolder(run)
    if torch.device(device).type == "cuda":
        pick_device("cuda")  # raises where there is none
    if checkpoint not in CHECKPOINTS:
        raise DataError(f"--checkpoint must be one of {', '.join(CHECKPOINTS)}, not {checkpoint!r}")
    if not folder.path.is_dir():
        raise DataError(f"run {run} does not exist")
    content = folder.load(checkpoint)
    if content is None:
        raise DataError(f"run {run} has no checkpoint {checkpoint!r} yet")
    found = folder.evaluation(checkpoint, content["step"])
    labelling = Labelling.from_state(content["labelling"]).to(device)
    if found is None or not found["num_pixels"] or len(found["mapping"]) != labelling.num_clusters:
        return Segmenter(labelling), content["step"]
    return Segmenter(labelling, found["mapping"], found["classes"]), content["step"]
