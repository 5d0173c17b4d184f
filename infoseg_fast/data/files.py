"""`FileSet`: images from files, and their label maps if there are any."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError, printable
from .base import ImageSet, Pixels, nearest, to_channels
from .images import IGNORE, band_count, describe, described_with, label_size, page_count, read_label, read_with
from .reader import Description, ReadOptions

logger = logging.getLogger("infoseg_fast")

MANY_PIXELS = 2**20  # size of an image from which it is read by parts, if its format allows it
DIGESTED_WHOLE = 2**16  # bytes; the digest of a larger file covers DIGESTED_PARTS parts of DIGESTED_BYTES bytes
DIGESTED_PARTS, DIGESTED_BYTES = 16, 4096


class File(NamedTuple):
    """A page of an image file, and its label map."""

    stem: str
    path: Path
    page: int
    label: Path | None


class FileSet(ImageSet):
    """Images from files.

    Grey images are repeated over the channels of colour images. 8-bit images are widened to 16 bits
    (times 257) if others have 16.

    Args:
        name: name of the set in messages.
        files: for each image its stem, its path, and the path of its label map or None.
        num_classes: number of label values, if there are no `classes`. None: the largest label + 1.
        classes: names of the label values, or None.
        options: how image files are read. None: the defaults.

    Raises:
        DataError: a header is damaged, a label map has another size than its image, or the images
            differ in channels or dtype in another way than above.
    """

    _other_labels: Sequence[Path] = ()  # label maps of the folder that this split does not have

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[str, Path, Path | None]],
        num_classes: int | None = None,
        classes: list[str] | None = None,
        options: ReadOptions | None = None,
    ) -> None:
        self.name, self.classes, self.options = name, classes, options or ReadOptions()
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda file: described_with(file[1], self.options), files))
        self._files: list[File] = []
        headers: list[Description] = []
        for (stem, path, label), (header, pages) in zip(files, found, strict=True):
            if self.options.pages == "each" and pages > 1:
                self._files += [File(f"{stem}#{page + 1}", path, page, label) for page in range(pages)]
                headers += [header, *(describe(path, page) for page in range(1, pages))]
            else:
                self._files.append(File(stem, path, 0, label))
                headers.append(header)
        self._headers = headers
        self.stems = [file.stem for file in self._files]
        self.sizes = [(header.height, header.width) for header in headers]
        self._find_channels()
        self.windowed = all(header.windowed for header in headers) and any(
            rows * columns > MANY_PIXELS for rows, columns in self.sizes
        )
        self.has_labels = all(file.label is not None for file in self._files)
        if self.has_labels:
            self._check_label_sizes()
        self.num_classes = num_classes if classes is None else len(classes)
        if self.num_classes is None:
            self.num_classes = self._number_of_labels()
        for note in dict.fromkeys(header.note for header in headers if header.note):
            example = next(f.path for f, header in zip(self._files, headers, strict=True) if header.note == note)
            logger.warning("%s, for example of %s", note, printable(example))

    def _find_channels(self) -> None:
        """Set the channels and the dtype of the set.

        Raises:
            DataError: the images do not go together.
        """
        counts = [band_count(header, self.options) for header in self._headers]
        self.channels = max(counts)
        dtypes = {header.dtype for header in self._headers}
        self.dtype = max(dtypes, key=lambda dtype: (dtype.itemsize, dtype.kind))
        widened = dtypes <= {np.dtype(np.uint8), np.dtype(np.uint16)}
        largest = self._files[counts.index(self.channels)].path
        for file, header, count in zip(self._files, self._headers, counts, strict=True):
            if count not in (1, self.channels):
                raise DataError(
                    f"image {file.path} has {count} channels, {largest} has {self.channels}; only grey images may be "
                    "mixed with others"
                )
            if header.dtype != self.dtype and not widened:
                raise DataError(
                    f"image {file.path} has values of {header.dtype}, others of {self.name} of {self.dtype}; only "
                    "uint8 and uint16 may be mixed"
                )

    def _check_label_sizes(self) -> None:
        for file, image in zip(self._files, self.sizes, strict=True):
            pages = page_count(file.label)
            if self.options.pages != "first" and pages > 1 and pages != page_count(file.path):
                raise DataError(f"label {file.label} has {pages} pages, its image {page_count(file.path)}")
            size = label_size(file.label, self._label_page(file))
            if size != image:
                raise DataError(
                    f"label {file.label} is {size[1]} x {size[0]} pixels, its image {image[1]} x {image[0]}; they must "
                    "agree"
                )

    def _label_page(self, file: File) -> int:
        return file.page if page_count(file.label) > 1 else 0

    def _number_of_labels(self) -> int | None:
        """The largest label + 1. None: there is no label map."""
        largest = [largest_label(values) for values in self._all_labels()]
        with ThreadPoolExecutor() as pool:
            read = partial(read_label, max_bytes=self.options.max_bytes)
            largest += pool.map(lambda path: largest_label(read(path)), self._other_labels)
        return 1 + max(largest) if largest else None

    def _all_labels(self) -> Iterator[np.ndarray]:
        labelled = [file for file in self._files if file.label is not None]
        with ThreadPoolExecutor() as pool:
            yield from pool.map(self._read_label, labelled)

    def _read_label(self, file: File) -> np.ndarray:
        return read_label(file.label, self.num_classes, self._label_page(file), self.options.max_bytes)

    def check_labels(self) -> None:
        """Read every label map. Warn if fewer than two classes are labelled.

        Raises:
            DataError: a label map is damaged, or has a value that is no class.
        """
        seen = np.zeros(256, dtype=bool)
        for values in self._all_labels():
            seen[np.unique(values)] = True
        present = np.flatnonzero(seen[:IGNORE])
        if len(present) < 2 and (self.num_classes or 2) > 1:
            which = f"only class {present[0]} is labelled" if len(present) else "no pixel is labelled"
            logger.warning(
                "%s: %s, so scores say nothing about a segmentation (255 means: not labelled)",
                printable(self.name), which,
            )  # fmt: skip

    def read(self, index: int) -> Pixels:
        file = self._files[index]
        image = read_with(file.path, self.options, file.page)
        return self._as_set(image.pixels), image.valid

    def read_window(self, index: int, row: int, column: int, height: int, width: int) -> Pixels:
        file = self._files[index]
        image = read_with(file.path, self.options, file.page, (row, column, height, width))
        return self._as_set(image.pixels), image.valid

    def _as_set(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels in the dtype and with the channels of the set."""
        if pixels.dtype != self.dtype:
            pixels = pixels.astype(np.uint16) * 257  # 8 to 16 bits
        return to_channels(pixels, self.channels)

    def label(self, index: int) -> np.ndarray:
        values = self._stored_label(index)
        if self.may_lack_data(index):
            rows, columns = self.sizes[index]
            step = max(1, MANY_PIXELS // columns) if self.windowed else rows
            for row in range(0, rows, step):
                part = values[row : row + step]
                valid = self.read_window(index, row, 0, len(part), columns)[1]
                if valid is not None:
                    part[~valid] = IGNORE
        return values

    def _stored_label(self, index: int) -> np.ndarray:
        """The label map as it is stored, whether the image has data or not."""
        return self._read_label(self._files[index])

    def label_part(self, index: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        if not self.windowed:
            return super().label_part(index, row, column, height, width)
        label = _kept_label(self, index)
        if self.scale == 1:
            return label[row : row + height, column : column + width]
        top, left, tall, wide = self.native_part(index, row, column, height, width)
        return nearest(label[top : top + tall, left : left + wide], (height, width))

    def may_lack_data(self, index: int) -> bool:
        """Whether a pixel of the image can be without data. In a plain 8-bit image none can."""
        header = self._headers[index]
        return (
            header.nodata is not None
            or self.options.nodata is not None
            or (self.options.alpha == "mask" and header.alpha)
            or header.dtype.kind == "f"
            or header.masked
        )

    def digests(self) -> list[bytes]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda file: file_digest(file.path), self._files))


@lru_cache(maxsize=2)
def _kept_label(images: FileSet, index: int) -> np.ndarray:
    return images._read_label(images._files[index])


def largest_label(values: np.ndarray) -> int:
    return int(values.max(initial=0, where=values != IGNORE))


def file_digest(path: Path) -> bytes:
    """SHA-256 of the size and the content of a file. Of a large file only parts are digested, spread
    evenly over it.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            if size <= DIGESTED_WHOLE:
                digest.update(file.read())
            else:
                for part in range(DIGESTED_PARTS):
                    file.seek((size - DIGESTED_BYTES) * part // (DIGESTED_PARTS - 1))
                    digest.update(file.read(DIGESTED_BYTES))
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}") from error
    return digest.digest()
