"""Image files as a set: a folder with labels where there are any, a list of paths, or one file."""

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
from .images import (
    IGNORE,
    band_count,
    describe,
    described_with,
    label_size,
    page_count,
    read_label,
    read_with,
)
from .names import by_stem, image_files, read_lines, read_list, read_names, require_unique, stem_of
from .reader import Description, ReadOptions

logger = logging.getLogger("infoseg_fast")

SPLITS = ("train", "eval", "all")
MANY_PIXELS = 2**20  # larger images of formats that allow it are read by parts
DIGESTED_WHOLE = 2**16  # bytes; of a larger file DIGESTED_PARTS parts of DIGESTED_BYTES bytes are digested
DIGESTED_PARTS, DIGESTED_BYTES = 16, 4096


class File(NamedTuple):
    """A page of an image file, and its label map."""

    stem: str
    path: Path
    page: int
    label: Path | None


class FileSet(ImageSet):
    """Images from files.

    Args:
        name: for messages.
        files: (stem, path of the image, path of its label map or None).
        num_classes: number of label values; None takes the number of `classes`, else the largest
            label + 1.
        classes: names of the label values.
        options: how image files are read.

    Raises:
        DataError: a header is damaged, or the images do not have the same bands and dtype. Grey
            images are repeated over the bands of colour images, and 8-bit images widened to 16
            bits, white staying white.
    """

    _other_labels: Sequence[Path] = ()  # label maps of the same folder that another split has

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
        """The channels and the dtype of the set."""
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
            size = label_size(file.label, self._label_page(file))
            if size != image:
                raise DataError(
                    f"label {file.label} is {size[1]} x {size[0]} pixels, its image {image[1]} x {image[0]}; they must "
                    "agree"
                )

    def _label_page(self, file: File) -> int:
        return file.page if page_count(file.label) > 1 else 0

    def _number_of_labels(self) -> int | None:
        """The largest label + 1; None without a label map."""
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
        """Read every label map; warn if only one class is labelled."""
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
        """The pixels in the set's dtype, with its channels."""
        if pixels.dtype != self.dtype:
            pixels = pixels.astype(np.uint16) * 257  # 8 to 16 bits
        return to_channels(pixels, self.channels)

    def label(self, index: int) -> np.ndarray:
        values = self._read_label(self._files[index])
        if self.may_lack_data(index):
            rows, columns = self.sizes[index]
            step = max(1, MANY_PIXELS // columns) if self.windowed else rows
            for row in range(0, rows, step):
                part = values[row : row + step]
                valid = self.read_window(index, row, 0, len(part), columns)[1]
                if valid is not None:
                    part[~valid] = IGNORE
        return values

    def label_part(self, index: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        if not self.windowed:
            return super().label_part(index, row, column, height, width)
        label = _kept_label(self, index)
        if self.scale == 1:
            return label[row : row + height, column : column + width]
        top, left, tall, wide = self.native_part(index, row, column, height, width)
        return nearest(label[top : top + tall, left : left + wide], (height, width))

    def may_lack_data(self, index: int) -> bool:
        """Whether a pixel of the image can be invalid; of a plain 8-bit image none can."""
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


class FolderSet(FileSet):
    """`root`/images (subfolders kept), and with ground truth `root`/labels; or image files directly
    in `root`.

    Args:
        root: the folder. `labels/` holds one map of integers per image stem (255 = ignore);
            `train.txt` and `eval.txt` list the stems of the splits (without them every image is in
            both); `classes.txt` names the label values.
        split: "train", "eval" or "all".
        num_classes, options: as for FileSet.

    Raises:
        DataError: the layout, a header or a list is not as above. Label values are checked when
            they are read.
    """

    def __init__(
        self, root: Path, split: str = "all", num_classes: int | None = None, options: ReadOptions | None = None
    ) -> None:
        folder = root / "images"
        if not folder.is_dir():
            if (root / "labels").exists() or not any(path.parent == root for path in image_files(root)):
                raise DataError(f"data folder {root} has no images/ folder")
            folder = root
        images = by_stem(folder, image_files(folder))
        if not images:
            raise DataError(f"{folder} holds no file in a format that can be read")
        listed = root / f"{split}.txt"
        stems = read_list(listed, images) if os.path.lexists(listed) else list(images)
        labels = labels_of(root, images) if folder != root else {}
        missing = [stem for stem in stems if stem not in labels]
        if missing and (split == "eval" if labels else (root / "labels").is_dir()):
            todo = "list the labelled stems in eval.txt" if labels else "remove the folder or fill it"
            raise DataError(
                f"{root / 'labels'} has no label for {missing[0]} ({len(missing)} of {len(stems)} images lack one); "
                f"{todo}"
            )
        self.split = split
        files = [(stem, images[stem], labels.get(stem)) for stem in stems]
        self._other_labels = [labels[stem] for stem in labels.keys() - set(stems)]
        super().__init__(str(root), files, num_classes, class_names(root / "classes.txt"), options)


def largest_label(values: np.ndarray) -> int:
    return int(values.max(initial=0, where=values != IGNORE))


def labels_of(root: Path, images: dict[str, Path]) -> dict[str, Path]:
    """The label maps of `root`/labels by stem; empty without that folder. DataError for one without
    an image.
    """
    folder = root / "labels"
    if not folder.is_dir():
        return {}
    labels = by_stem(folder, image_files(folder), "labels")
    unmatched = sorted(labels.keys() - images.keys())
    if unmatched:
        raise DataError(f"label {labels[unmatched[0]]} has no image of its stem ({len(unmatched)} such labels)")
    return labels


def class_names(path: Path) -> list[str] | None:
    """The names of the label values, one a line; None without the file."""
    if not os.path.lexists(path):
        return None
    names = read_names(path)
    if not 1 <= len(names) <= IGNORE:
        raise DataError(f"{path} names {len(names)} classes; 1 to {IGNORE} are accepted")
    return names


def open_file(path: Path, num_classes: int | None, options: ReadOptions) -> FileSet:
    """One image file as a set."""
    classes = class_names(folder_of(path) / "classes.txt")
    return FileSet(str(path), [(path.stem, path, labels_beside([path])[0])], num_classes, classes, options)


def open_list(path: Path, num_classes: int | None, options: ReadOptions) -> FileSet:
    """The images whose paths a text file lists, one a line, relative to the file's folder."""
    lines = read_lines(path)
    require_unique(path, lines)
    images = [path.parent / line for line in lines]
    for line, image in zip(lines, images, strict=True):
        if not image.is_file():
            raise DataError(f"list {path} names {line!r}, which is no file")
    first: dict[str, str] = {}
    for line, image in zip(lines, images, strict=True):
        other = first.setdefault(os.path.realpath(image), line)
        if other is not line:
            raise DataError(f"list {path} names one file twice: {other!r} and {line!r} are {os.path.realpath(image)}")
    common = Path(os.path.commonpath([image.absolute().parent for image in images]))
    stems = by_stem(common, [image.absolute() for image in images])
    folders = {folder_of(image) for image in images}
    classes = class_names(folders.pop() / "classes.txt") if len(folders) == 1 else None
    labels = labels_beside(images)
    return FileSet(str(path), list(zip(stems, images, labels, strict=True)), num_classes, classes, options)


def folder_of(image: Path) -> Path:
    """The data folder of an image file: that of its images/ folder if it lies in one, else its own
    folder.
    """
    return next((folder.parent for folder in image.absolute().parents if folder.name == "images"), image.parent)


def labels_beside(images: Sequence[Path]) -> list[Path | None]:
    """The label map in DATA/labels of each DATA/images/STEM; None for an image without one."""
    below: dict[Path, dict[str, Path]] = {}
    found: list[Path | None] = []
    for image in map(Path.absolute, images):
        root = folder_of(image)
        if root not in below:
            folder = root / "labels"
            below[root] = by_stem(folder, image_files(folder), "labels") if folder.is_dir() else {}
        inside = image.is_relative_to(root / "images")
        found.append(below[root].get(stem_of(image, root / "images")) if inside else None)
    return found


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's size and content; of a large file of parts that are spread evenly over
    it.
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


__all__ = ["SPLITS", "FileSet", "FolderSet", "stem_of"]
