"""WebDataset shards: tar files of images, as `--data "DIR/shards-{0000..0099}.tar"`.

A shard is an uncompressed tar file. Members whose names agree up to the first dot of the last part
belong together: `KEY.jpg` is an image, `KEY.label.png` its label map. Other members are passed
over.

The shards are indexed once, and images are then read by their places. So every epoch is a full
permutation that follows from the seed, a run resumes at any step without reading what came before,
and ranks and worker processes share nothing. A stream of shards, as the webdataset package reads
it, has none of the three. `infoseg prepare shards` writes the index beside each shard, with what
the images say of themselves; without it the headers of all members and images are read when the
set is opened.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checkpoint import write_atomically
from ..errors import DataError
from .base import Pixels
from .folder import File, FileSet, FolderSet, class_names, file_digest
from .images import accepted, described_with, image_endings, label_size, read_label, read_with
from .reader import Description, ReadOptions

SHARD_BYTES = 2**28  # of images and labels in a shard that is written
LABEL = ".label.png"
OPEN_SHARDS = 64
INDEX = ".index.json"  # behind the name of a shard
_unique = itertools.count(1)


class Place(NamedTuple):
    """Where a member's bytes lie in a shard."""

    shard: int
    offset: int
    size: int


class ShardSet(FileSet):
    """Images from shards; the same in every split.

    Args:
        pattern: path of a shard, or of several with {first..last} in its name.
        num_classes: number of label values; None takes that of classes.txt beside the shards, else
            the largest label + 1.
        options: how image files are read. Files of several pages are not accepted.

    Raises:
        DataError: a shard is missing or damaged, or as for `FileSet`.
    """

    def __init__(self, pattern: str, num_classes: int | None = None, options: ReadOptions | None = None) -> None:
        self.name, self.options = pattern, options or ReadOptions()
        self._shards = expanded(pattern)
        self._images: list[Place] = []
        self._labels: list[Place | None] = []
        self._files, self._headers, self.stems = [], [], []
        same: dict[Description, Description] = {}  # most headers are equal
        for number, shard in enumerate(self._shards):
            for key, name, image, label, header in members_of(shard, self.options):
                self.stems.append(f"{shard.stem}/{key}")
                self._files.append(
                    File(self.stems[-1], f"{shard}:{name}", 0, f"{shard}:{key}{LABEL}" if label else None)
                )
                self._images.append(Place(number, *image))
                self._labels.append(Place(number, *label) if label else None)
                self._headers.append(same.setdefault(header, header))
        if not self.stems:
            raise DataError(f"{pattern}: the shards hold no image in a format that can be read")
        self.sizes = [(header.height, header.width) for header in self._headers]
        self._find_channels()
        self.has_labels = all(place is not None for place in self._labels)
        self.classes = class_names(self._shards[0].parent / "classes.txt")
        self.num_classes = num_classes if self.classes is None else len(self.classes)
        if self.num_classes is None:
            self.num_classes = self._number_of_labels()

    def read(self, index: int) -> Pixels:
        with self._member(self._images[index], self._files[index].path) as path:
            image = read_with(path, self.options)
        return self._as_set(image.pixels), image.valid

    def read_window(self, index: int, row: int, column: int, height: int, width: int) -> Pixels:
        pixels, valid = self.read(index)
        inside = slice(row, row + height), slice(column, column + width)
        return pixels[:, inside[0], inside[1]], None if valid is None else valid[inside]

    def label(self, index: int) -> np.ndarray:
        with self._member(self._labels[index], self._files[index].label) as path:
            if (size := label_size(path)) != self.sizes[index]:
                raise DataError(f"label {path} is {size[1]} x {size[0]} pixels, its image is not")
            return read_label(path, self.num_classes)

    def _all_labels(self) -> Iterator[np.ndarray]:
        labelled = (index for index, place in enumerate(self._labels) if place is not None)
        with ThreadPoolExecutor() as pool:
            while chunk := list(itertools.islice(labelled, 256)):
                yield from pool.map(self.label, chunk)

    def digests(self) -> list[bytes]:
        of_shards = [file_digest(shard) for shard in self._shards]
        return [sha256(of_shards[place.shard] + repr(place[1:]).encode()).digest() for place in self._images]

    @contextlib.contextmanager
    def _member(self, place: Place, name: str) -> Iterator[Path]:
        with as_file(read_at(self._shards[place.shard], place.offset, place.size), name) as path:
            yield path


def is_shards(data: str) -> bool:
    """Whether `--data` names shards."""
    return data.lower().endswith(".tar")


def expanded(pattern: str) -> list[Path]:
    """The shards of a pattern: {0000..0099} counts, with as many digits as its first number.

    Raises:
        DataError: a shard does not exist.
    """
    found = [pattern]
    while match := re.search(r"\{(\d+)\.\.(\d+)\}", found[0]):
        first, last = match.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        found = [re.sub(r"\{\d+\.\.\d+\}", number, one, count=1) for one in found for number in numbers]
        if not found:
            raise DataError(f"--data {pattern}: {{{first}..{last}}} counts no shard")
    for path in map(Path, found):
        if not path.is_file():
            raise DataError(f"--data {pattern}: shard {path} does not exist")
    return [Path(one) for one in found]


def members_of(shard: Path, options: ReadOptions) -> Iterator[tuple]:
    """(key, name of the image, (offset, size) of the image and of its label map or None,
    description) of each image.
    """
    endings = image_endings()
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    places, described = _index(shard)
    for name, offset, size in places:
        folder, _, last = name.rpartition("/")
        key, _, ending = last.partition(".")
        if key:  # not a hidden file
            key = f"{folder}/{key}" if folder else key
            samples.setdefault(key, {})["." + ending.lower()] = (name, offset, size)
    for key, members in samples.items():
        images = [ending for ending in members if ending in endings]
        if len(images) > 1:
            raise DataError(f"shard {shard} has {len(images)} images of the key {key}")
        if images:
            name, *place = members[images[0]]
            label = members.get(LABEL)
            header = _header(shard, name, place, described.get(name), options)
            yield key, name, tuple(place), label and label[1:], header


def _header(
    shard: Path, name: str, place: list[int], described: Description | None, options: ReadOptions
) -> Description:
    """The description of an image that may be read with these options."""
    if described is not None:
        try:
            return accepted(described, options)
        except DataError as error:
            raise DataError(f"image {shard}:{name} cannot be read: {error}") from error
    with as_file(read_at(shard, *place), f"{shard}:{name}") as path:
        header, pages = described_with(path, options)
    if pages > 1 and options.pages == "each":
        raise DataError(f"image {shard}:{name} has {pages} pages; of shards only --pages first is accepted")
    return header


def _index(shard: Path) -> tuple[list[tuple[str, int, int]], dict[str, Description]]:
    """(name, offset, size) of the files of a shard, and descriptions of images: of its index, if
    that was written for a shard of this size, else of the tar file, without descriptions.
    """
    beside = shard.with_name(shard.name + INDEX)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        record = json.loads(beside.read_text())
        if record["bytes"] == shard.stat().st_size:
            places = [(name, offset, size) for name, offset, size in record["members"]]
            return places, {name: _description(*fields) for name, fields in record["images"].items()}
    return _members_in(shard), {}


def _description(height: int, width: int, bands: int, dtype: str, *others: object) -> Description:
    return Description(height, width, bands, np.dtype(dtype), *others)


def _members_in(shard: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the files of a shard, from the headers of the tar file."""
    try:
        with tarfile.open(shard, "r:") as archive:
            return [(one.name, one.offset_data, one.size) for one in archive if one.isreg()]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"shard {shard} cannot be read: {error}") from error


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(shard: Path) -> "_Opened":
    return _Opened(shard)


class _Opened:
    """A file that is closed when nothing refers to it. Reads at a place are safe after a fork."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


def read_at(shard: Path, offset: int, size: int) -> bytes:
    """A part of a shard.

    Raises:
        DataError: it cannot be read, or the shard is shorter.
    """
    try:
        opened = _opened(shard)  # held while it is read: another thread may drop it from the cache
        data = os.pread(opened.number, size, offset)
    except OSError as error:
        raise DataError(f"shard {shard} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise DataError(f"shard {shard} ends within a member (damaged)")
    return data


@contextlib.contextmanager
def as_file(data: bytes, name: str) -> Iterator[Path]:
    """A path at which these bytes can be read, in memory. A DataError about it names `name`."""
    number = os.memfd_create("member")
    path = f"/proc/self/fd/{number}"
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        # Readers that are kept open are told apart by path, time and size. The time makes each file
        # one of its own.
        time = next(_unique)
        os.utime(number, ns=(time, time))
        yield Path(path)
    except DataError as error:
        raise DataError(str(error).replace(path, name)) from error
    finally:
        os.close(number)


def write_shards(root: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> tuple[int, str]:
    """Write the images and label maps of a folder as shards, byte for byte, with their indices.

    Args:
        root: a folder as `--data` takes it.
        out: the folder to be made. It gets its name when it is complete.
        shard_bytes: a shard ends after the image that reaches this size.

    Returns:
        The number of images, and the pattern for `--data`.

    Raises:
        DataError: the folder is not as it must be, `out` exists, or it cannot be written.
    """
    if out.exists():
        raise DataError(f"--out {out} exists; choose another folder")
    if not root.is_dir():
        raise DataError(f"--root {root} is no folder with images")
    source = FolderSet(root, "all")
    files, headers = source._files, source._headers
    keys = [file.stem.replace(".", "_") for file in files]
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise DataError(f"{root}: two images would have the key {twice}, in which a dot becomes _")
    scratch = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        number = 0
        waiting = iter(zip(keys, files, headers, strict=True))
        while (first := next(waiting, None)) is not None:
            shard = scratch / f"shards-{number:04d}.tar"
            images = {}
            with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as archive:
                for key, file, header in itertools.chain([first], waiting):
                    name = key + file.path.suffix.lower()
                    archive.add(file.path, name)
                    images[name] = header._replace(dtype=str(header.dtype))
                    if file.label is not None:
                        archive.add(file.label, key + LABEL)
                    if archive.offset >= shard_bytes:
                        break
            record = {"bytes": shard.stat().st_size, "members": _members_in(shard), "images": images}
            write_atomically(shard.with_name(shard.name + INDEX), json.dumps(record).encode())
            number += 1
        if (root / "classes.txt").is_file():
            shutil.copy(root / "classes.txt", scratch)
        os.rename(scratch, out)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from error
    return len(files), str(out / f"shards-{{0000..{number - 1:04d}}}.tar")
