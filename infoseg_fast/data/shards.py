"""WebDataset shards: tar files of images, as `--data "DIR/shards-{0000..0099}.tar"`.

A shard is an uncompressed tar file. `KEY.jpg` is an image and `KEY.label.png` its label map; a key
ends at the first dot of the file name. Other members are ignored.

Images are read by their place in the shard. So every epoch is a full permutation that follows from
the seed, a run resumes at any step without reading earlier images, and ranks and worker processes
share nothing. A stream of shards, as the webdataset package reads it, has none of the three.

`infoseg prepare shards` writes an index beside each shard, with the headers of its images. It is
used if the shard has the size that it names. (A copy of a shard has another modification time.)
Without an index the headers of all members and images are read when the set is opened.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from operator import index as whole
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError, printable
from .base import ImageSet, Pixels
from .files import File, FileSet, file_digest
from .folder import class_names
from .images import accepted, band_count, described_with, image_endings, label_size, read_label, read_with
from .reader import Description, ReadOptions

LABEL = ".label.png"  # ending of a label map
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # endings of shards that are refused
OPEN_SHARDS = 64  # number of shards that are kept open
INDEX = ".index.json"  # appended to the name of a shard
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # in a pattern
_unique = itertools.count(1)
logger = logging.getLogger("infoseg_fast")


class Place(NamedTuple):
    """The place of a member: index of the shard, offset and size in bytes."""

    shard: int
    offset: int
    size: int


class ShardSet(FileSet):
    """Images from shards, the same in every split.

    Args:
        pattern: path of a shard, or of several shards with {first..last} in the name.
        num_classes: number of label values. None: that of classes.txt beside the shards, else the
            largest label + 1.
        options: how image files are read. pages="each" is not accepted. None: the defaults.

    Raises:
        DataError: a shard is missing or damaged, or see `FileSet`. Also from `read`, if an image
            differs from the index of its shard.
    """

    def __init__(self, pattern: str, num_classes: int | None = None, options: ReadOptions | None = None) -> None:
        self.name, self.options = pattern, options or ReadOptions()
        self._shards = expanded(pattern)
        self._images: list[Place] = []
        self._labels: list[Place | None] = []
        self._files, self._headers, self.stems = [], [], []
        same: dict[Description, Description] = {}  # equal headers are kept once
        common = Path(os.path.commonpath([shard.absolute().parent for shard in self._shards]))
        left_out: list[str] = []
        for number, shard in enumerate(self._shards):
            within = shard.absolute().relative_to(common).with_suffix("").as_posix()
            for key, name, image, label, header in members_of(shard, self.options, left_out):
                self.stems.append(f"{within}/{key}")
                self._files.append(
                    File(self.stems[-1], f"{shard}:{name}", 0, f"{shard}:{key}{LABEL}" if label else None)
                )
                self._images.append(Place(number, *image))
                self._labels.append(Place(number, *label) if label else None)
                self._headers.append(same.setdefault(header, header))
        if left_out:
            note = f"left out, because a key ends at the first dot of a name: {left_out[0]}"
            note += f" and {len(left_out) - 1} others" if len(left_out) > 1 else ""
            if not self.stems:
                raise DataError(f"{pattern}: {note}")
            logger.warning("%s: %s", printable(pattern), printable(note))
        if not self.stems:
            raise DataError(f"{pattern}: the shards hold no image in a format that can be read")
        self.sizes = [(header.height, header.width) for header in self._headers]
        self._find_channels()
        unlabelled = self._labels.count(None)
        self.has_labels = not unlabelled
        if 0 < unlabelled < len(self._labels):
            logger.warning("%s: no scores, since %d images have no label map", printable(pattern), unlabelled)
        self.classes = class_names(self._shards[0].parent / "classes.txt")
        self.num_classes = num_classes if self.classes is None else len(self.classes)
        if self.num_classes is None:
            self.num_classes = self._number_of_labels()

    def read(self, index: int) -> Pixels:
        with self._member(self._images[index], self._files[index].path) as path:
            image, header = read_with(path, self.options), self._headers[index]
        found = *image.pixels.shape, image.pixels.dtype
        if found != (band_count(header, self.options), *self.sizes[index], header.dtype):
            raise DataError(
                f"image {self._files[index].path} is not as the index of its shard says, which changed since; "
                f"delete {self._shards[self._images[index].shard]}{INDEX}"
            )
        return self._as_set(image.pixels), image.valid

    read_window = ImageSet.read_window

    def _stored_label(self, index: int) -> np.ndarray:
        with self._member(self._labels[index], self._files[index].label) as path:
            if (size := label_size(path)) != self.sizes[index]:
                raise DataError(f"label {path} is {size[1]} x {size[0]} pixels, its image is not")
            return read_label(path, self.num_classes, max_bytes=self.options.max_bytes)

    def _all_labels(self) -> Iterator[np.ndarray]:
        labelled = (index for index, place in enumerate(self._labels) if place is not None)
        with ThreadPoolExecutor() as pool:
            while chunk := list(itertools.islice(labelled, 256)):
                yield from pool.map(self._stored_label, chunk)

    def digests(self) -> list[bytes]:
        of_shards = [file_digest(shard) for shard in self._shards]
        return [sha256(of_shards[place.shard] + repr(place[1:]).encode()).digest() for place in self._images]

    @contextlib.contextmanager
    def _member(self, place: Place, name: str) -> Iterator[Path]:
        with as_file(read_at(self._shards[place.shard], place.offset, place.size), name) as path:
            yield path


def is_shards(data: str) -> bool:
    """Whether `data` is a pattern of shards, which may be compressed."""
    return data.lower().endswith((".tar", *COMPRESSED))


def expanded(pattern: str) -> list[Path]:
    """The shards of a pattern: {0000..0099} stands for numbers with the digits of the first one.

    Raises:
        DataError: a shard does not exist or is compressed, or the numbers do not increase.
    """
    if pattern.lower().endswith(COMPRESSED):
        raise DataError(f"--data {pattern}: compressed shards cannot be read at random; decompress them to .tar")
    found = []
    for one in _numbered(pattern):
        found.append(Path(one))
        if not found[-1].is_file():
            raise DataError(f"--data {pattern}: shard {one} does not exist")
    return found


def _numbered(pattern: str) -> Iterator[str]:
    """The names of a pattern, one after the other: a typing error may count to billions."""
    match = RANGE.search(pattern)
    if match is None or Path(pattern).is_file():
        yield pattern
        return
    first, last = match.groups()
    if int(first) > int(last):
        raise DataError(f"--data {pattern}: {match[0]} counts no shard")
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{pattern[: match.start()]}{str(number).zfill(len(first))}{pattern[match.end() :]}")


def members_of(shard: Path, options: ReadOptions, left_out: list[str]) -> Iterator[tuple]:
    """For each image of a shard: key, name, (offset, size), (offset, size) of its label map or
    None, and description. The names of images in whose keys a dot splits the name, such as
    a.1.png, are appended to `left_out` if the key has no other image.
    """
    endings = image_endings()
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    places, described = _index(shard)
    for name, offset, size in places:
        folder, _, last = name.rpartition("/")
        key, _, ending = last.partition(".")
        # Neither a hidden file nor in a hidden folder. tar may write ./ before a name.
        if key and not any(part[:1] == "." and part.strip(".") for part in folder.split("/")):
            key, ending = f"{folder}/{key}" if folder else key, "." + ending.lower()
            other = samples.setdefault(key, {}).setdefault(ending, (name, offset, size))
            if other[0] != name and ending in endings:
                raise DataError(f"shard {shard} has two images of the key {key}: {other[0]} and {name}")
            samples[key][ending] = (name, offset, size)  # the last of equal names, as tar has it
    for key, members in samples.items():
        images = [ending for ending in members if ending in endings]
        if len(images) > 1:
            raise DataError(f"shard {shard} has {len(images)} images of the key {key}")
        if not images:
            left_out += [f"{shard}:{name}" for ending, (name, *_) in members.items()
                         if ending != LABEL and Path(ending).suffix in endings]  # fmt: skip
        else:
            name, *place = members[images[0]]
            label = members.get(LABEL)
            header = _header(shard, name, place, described.get(name), options)
            yield key, name, tuple(place), label and label[1:], header


def _header(
    shard: Path, name: str, place: list[int], described: Description | None, options: ReadOptions
) -> Description:
    """The description of an image, from the index or else from the image.

    Raises:
        DataError: the image cannot be read with these options.
    """
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
    """(name, offset, size) of the files of a shard, and the descriptions of its images. From the
    index if it names the size of the shard, else from the tar file, without descriptions.
    """
    beside = shard.with_name(shard.name + INDEX)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        record = json.loads(beside.read_text())
        if record["bytes"] == shard.stat().st_size:
            places = [(os.fspath(name), whole(offset), whole(size)) for name, offset, size in record["members"]]
            return places, {
                name: Description(rows, columns, bands, np.dtype(dtype), *others)
                for name, (rows, columns, bands, dtype, *others) in record["images"].items()
            }
    return members_in(shard), {}


def members_in(shard: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the files of a shard, from the headers of the tar file."""
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = list(archive)
            # tarfile takes a damaged header for the end, which is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {archive.offset} (damaged)")
        endings = image_endings()
        for one in members:
            if (one.issym() or one.islnk()) and Path(one.name).suffix.lower() in endings:
                raise tarfile.ReadError(f"its member {one.name} is a link, not a file (tar has -h, --hard-dereference)")
        return [(one.name, one.offset_data, one.size) for one in members if one.isreg()]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"shard {shard} cannot be read: {error}") from error


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(shard: Path) -> "_Opened":
    return _Opened(shard)


class _Opened:
    """A file that is closed when nothing refers to it. `os.pread` is safe after a fork."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


def read_at(shard: Path, offset: int, size: int) -> bytes:
    """A part of a shard.

    Raises:
        DataError: the shard cannot be read, or ends before the part.
    """
    try:
        opened = _opened(shard)  # keeps it open: another thread may drop it from the cache
        data = os.pread(opened.number, size, offset)
    except OSError as error:
        raise DataError(f"shard {shard} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise DataError(f"shard {shard} ends within a member (damaged)")
    return data


@contextlib.contextmanager
def as_file(data: bytes, name: str) -> Iterator[Path]:
    """A context with the path of a file in memory that has these bytes. A DataError in it names
    `name` instead of the path.
    """
    number = os.memfd_create("member")
    path = f"/proc/self/fd/{number}"
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        # The cache of open readers distinguishes files by path, time and size. A unique time makes
        # each file a new one.
        time = next(_unique)
        os.utime(number, ns=(time, time))
        yield Path(path)
    except DataError as error:
        raise DataError(str(error).replace(path, name)) from error
    finally:
        os.close(number)
