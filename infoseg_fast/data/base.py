"""`ImageSet`: the interface of a set of images, wherever its pixels are stored.

Training cuts `crops` out of the images, evaluation `read`s whole images and compares them with
their `target`. Both scale stored values by `scaling`, which the run records. A subclass sets the
attributes and implements `read` and `label`.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .images import IGNORE
from .scaling import Scaling, estimate

OVERVIEW_BYTES = 64 * 2**20  # decoded rows that an overview reads at a time
# [c, rows, columns], and bool [rows, columns], False where a pixel has no data. None: all have data.
Pixels = tuple[np.ndarray, np.ndarray | None]


class ImageSet:
    """Images with stems, and with labels if there are any.

    Attributes:
        name: name of the set in messages.
        stems: stem of each image.
        sizes: (rows, columns) of each image, before scaling.
        channels, dtype: number of channels and dtype of all images.
        classes: names of the label values, or None.
        num_classes: number of label values. None: unknown.
        has_labels: whether every image has a label map.
        scale: factor by which images are resized when they are read. Labels keep their size.
        crop_side: side of the training crops that the set's protocol prescribes, pixels, or None.
        in_process: whether crops are cheap to cut, without worker processes.
        windowed: whether `read_window` decodes less than the whole image.
        raw_scale: factor by which the images were resized when the set was made.
        position: whether training crops come with the position of their pixels (`position`).
        folder: the folder whose files, in subfolders too, are the images of the set, or None.
        unlabelled_as: class that a published protocol gives to pixels without ground truth, or
            None; see `target`.
    """

    name: str
    stems: list[str]
    sizes: list[tuple[int, int]]
    channels: int
    dtype: np.dtype
    classes: list[str] | None
    num_classes: int | None
    has_labels: bool
    scale: float = 1.0
    crop_side: int | None = None
    in_process: bool = False
    windowed: bool = False
    raw_scale: float = 1.0
    position: bool = False
    folder: Path | None = None
    unlabelled_as: int | None = None
    _scaling: Scaling | None = None

    def __len__(self) -> int:
        return len(self.stems)

    # Methods that subclasses implement or replace

    def read(self, index: int) -> Pixels:
        """The image at native size, [channels, rows, columns] of `dtype`."""
        raise NotImplementedError

    def read_window(self, index: int, row: int, column: int, height: int, width: int) -> Pixels:
        """A part of the image at native size. It must lie within the image."""
        return cut(self.read(index), slice(row, row + height), slice(column, column + width))

    def label(self, index: int) -> np.ndarray:
        """The label map at native size, uint8 [rows, columns]: values below num_classes, and 255
        for pixels without ground truth or data.
        """
        raise NotImplementedError

    def target(self, index: int) -> np.ndarray:
        """The map that scores compare with: `label`, with the value num_classes for pixels that a
        protocol leaves undecided. Values are below `num_targets`, or 255.
        """
        return self.label(index)

    @property
    def num_targets(self) -> int:
        """Number of values of `target`, without 255."""
        return self.num_classes

    def folded(self, counts: np.ndarray, unlabelled: str | None = None) -> np.ndarray:
        """Counts of values of `target` [clusters, num_targets] as counts of classes [clusters,
        num_classes].
        """
        return counts

    def protocol(self, counts: np.ndarray) -> dict:
        """Facts of the protocol that are printed with the scores of counts [clusters, num_targets].
        Empty: the set has no protocol.
        """
        return {}

    def check_labels(self) -> None:
        """Raise DataError for a label map that `label` would not accept."""

    def fingerprint(self) -> dict:
        """{"images": number, "sha256": hash of stems, sizes and contents}. It does not depend on
        the folder of the images.
        """
        digest = hashlib.sha256(repr((self.sizes, self.channels, str(self.dtype))).encode())
        for stem, content in zip(self.stems, self.digests(), strict=True):
            digest.update(os.fsencode(stem) + b"\0" + content)
        return {"images": len(self), "sha256": digest.hexdigest()}

    def digests(self) -> list[bytes]:
        """A digest of each image's content, for `fingerprint`."""
        return [b""] * len(self)

    # Methods that follow from these

    @property
    def scaling(self) -> Scaling:
        """Maps stored values to [0, 1]: the scaling that was set, else the set's own."""
        if self._scaling is None:
            self._scaling = estimate(self)
        return self._scaling

    @scaling.setter
    def scaling(self, scaling: Scaling) -> None:
        self._scaling = scaling

    def native_image(self, index: int) -> np.ndarray:
        """The stored values at native size. Pixels without data have the value `scaling.fill`."""
        pixels, valid = self.read(index)
        return pixels if valid is None else self.scaling.filled(pixels, valid)

    def scaled(self, index: int) -> Pixels:
        """The image at the set's scale."""
        pixels, valid = self.read(index)
        return rescale(pixels, self.scale), None if valid is None else nearest(valid, self.size(index))

    def overview(self, index: int, side: int) -> Pixels:
        """Every n-th pixel of the image, so that no side is above `side`. A large file is read by
        bands of rows.
        """
        rows, columns = self.sizes[index]
        step = -(-max(rows, columns) // side)
        band = rows
        if self.windowed:
            row_bytes = columns * self.channels * self.dtype.itemsize
            band = max(1, OVERVIEW_BYTES // (row_bytes * step)) * step
        parts, masks = [], []
        for row in range(0, rows, band):
            pixels, valid = self.read_window(index, row, 0, min(band, rows - row), columns)
            parts.append(pixels[:, ::step, ::step].copy())
            masks.append(np.ones(parts[-1].shape[1:], bool) if valid is None else valid[::step, ::step])
        mask = np.concatenate(masks)
        return np.concatenate(parts, axis=1), None if mask.all() else mask

    def image(self, index: int) -> np.ndarray:
        """The stored values at the set's scale."""
        return self.scaled(index)[0]

    def evenly_spread(self, number: int) -> list[int]:
        """Indices of `number` images, spread evenly over the set; all images if it has fewer."""
        return np.unique(np.linspace(0, len(self) - 1, min(number, len(self))).round().astype(int)).tolist()

    def size(self, index: int) -> tuple[int, int]:
        """(rows, columns) of `image(index)`."""
        return scaled_size(self.sizes[index], self.scale)

    def may_lack_data(self, index: int) -> bool:
        """Whether a pixel of the image can be invalid."""
        return False

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray | None:
        """The order of the images in an epoch. None: a random permutation."""
        return None

    def spread(self) -> "ImageSet":
        """The set with a random permutation as its `epoch_order`, so that the first images of an
        epoch are from everywhere in it.
        """
        return self

    def part(self, index: int, row: int, column: int, side: int, window: Callable[..., Pixels] | None = None) -> Pixels:
        """The square at the set's scale with its upper left corner at (row, column), cut off at the
        image's border. `window` replaces `read_window`.
        """
        rows, columns = self.size(index)
        height, width = min(side, rows - row), min(side, columns - column)
        if not self.windowed:
            return cut(self.scaled(index), slice(row, row + height), slice(column, column + width))
        window = window or self.read_window
        if self.scale == 1:
            return window(index, row, column, height, width)
        pixels, valid = window(index, *self.native_part(index, row, column, height, width))
        resized = resize(pixels, (height, width))
        return resized, None if valid is None else nearest(valid, (height, width))

    def native_part(self, index: int, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The (row, column, height, width) at native size of a part that is given at the set's
        scale.
        """
        spans = []
        for start, length, native, scaled in zip(
            (row, column), (height, width), self.sizes[index], self.size(index), strict=True
        ):
            first = int(start * native / scaled)
            spans.append((first, max(1, min(native, round((start + length) * native / scaled)) - first)))
        (top, tall), (left, wide) = spans
        return top, left, tall, wide

    def label_part(self, index: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        """The label map of a part at the set's scale, [height, width]."""
        label = nearest(self.label(index), self.size(index))
        return label[row : row + height, column : column + width]

    def corner(self, index: int, y: float, x: float, side: int) -> tuple[int, int]:
        """(row, column) of the crop at the fractions y and x of the image's free rows and columns."""
        rows, columns = self.size(index)
        return int(y * (max(rows - side, 0) + 1)), int(x * (max(columns - side, 0) + 1))

    def place(self, index: int, y: float, x: float, side: int) -> tuple[int, int]:
        """The row of `corner`, and the number of rows of the image that the crop is cut from."""
        return self.corner(index, y, x, side)[0], self.size(index)[0]

    def crops(
        self, indices: np.ndarray, y: np.ndarray, x: np.ndarray, side: int, labelled: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Cut a square out of each image at the set's scale. Pixels without data have the value
        `scaling.fill`. Smaller images are padded by their edge.

        Args:
            indices: int [B], the images.
            y, x: [B] in [0, 1), the corners, see `corner`.
            side: side of the squares, pixels.
            labelled: whether pixels without ground truth do not count either.

        Returns:
            The squares [B, channels, side, side] in the set's dtype, and bool [B, side, side],
            False for padding and for pixels that do not count. None: all count.
        """
        batch = np.empty((len(indices), self.channels, side, side), dtype=self.dtype)
        valid = np.zeros((len(indices), side, side), dtype=bool)
        for b, index in enumerate(indices):
            row, column = self.corner(index, y[b], x[b], side)
            cut, has_data = self.part(index, row, column, side)
            if has_data is not None:
                cut = self.scaling.filled(cut, has_data)
            rows, columns = cut.shape[1:]
            valid[b, :rows, :columns] = True if has_data is None else has_data
            if labelled:
                valid[b, :rows, :columns] &= self.label_part(index, row, column, rows, columns) != IGNORE
            if (rows, columns) != (side, side):
                cut = np.pad(cut, ((0, 0), (0, side - rows), (0, side - columns)), mode="edge")
            batch[b] = cut
        return batch, None if valid.all() else valid

    @property
    def shortest_side(self) -> int:
        """The shortest side of all images at the set's scale, pixels."""
        return min(min(scaled_size(size, self.scale)) for size in set(self.sizes))

    def num_smaller(self, side: int) -> int:
        """Number of images that are smaller than a crop of this side."""
        return sum(min(self.size(index)) < side for index in range(len(self)))

    @property
    def num_bytes(self) -> int:
        """Bytes of all images together at the set's scale."""
        pixels = sum(rows * columns for rows, columns in map(self.size, range(len(self))))
        return pixels * self.channels * self.dtype.itemsize


class InMemory(ImageSet):
    """A set with its scaled images in memory. Everything else comes from the set `source`."""

    in_process = True

    def __init__(self, source: ImageSet, images: list[Pixels]) -> None:
        vars(self).update(vars(source))
        self._images, self.windowed = images, False
        for method in ("read", "label", "digests", "fingerprint", "check_labels", "may_lack_data"):
            setattr(self, method, getattr(source, method))
        if self.scale == 1:  # the files need not be decoded again
            self.read = self.scaled

    def scaled(self, index: int) -> Pixels:
        return self._images[index]


def cut(image: Pixels, rows: slice, columns: slice) -> Pixels:
    """A part of an image."""
    pixels, valid = image
    return pixels[:, rows, columns], None if valid is None else valid[rows, columns]


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(rows, columns) after resizing by a factor, at least 1 each."""
    return size if scale == 1 else tuple(max(1, round(n * scale)) for n in size)


def rescale(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Resize [c, rows, columns] by a factor."""
    return pixels if scale == 1 else resize(pixels, scaled_size(pixels.shape[1:], scale))


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [c, rows, columns] to a size: bilinear, with antialiasing, in the same dtype."""
    if pixels.shape[1:] == size:
        return pixels
    work = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
    resized = F.interpolate(
        torch.from_numpy(pixels.astype(work))[None], size=size, mode="bilinear", antialias=True
    )[0].numpy()  # fmt: skip
    if pixels.dtype.kind == "f":
        return resized
    limits = np.iinfo(pixels.dtype)
    return resized.round().clip(limits.min, limits.max).astype(pixels.dtype)


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map [rows, columns] at another size. Each pixel has the value at its centre."""
    if values.shape == tuple(size):
        return values
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(np.intp) for n, m in zip(values.shape, size, strict=True))
    return values[rows[:, None], columns]


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """The image [c, rows, columns] with this number of channels. A single channel is repeated."""
    return pixels if len(pixels) == channels else np.repeat(pixels, channels, axis=0)
