"""The jobs of `infoseg predict`: images, paths of their maps, and keys of finished maps.

Every map carries a key: a digest of the labelling, of the options that change its content, of the
place, and of the sizes and the modification times of the files of the image. An interrupted call
continues with the images whose maps lack the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.images import companions, described_with, georeference_of
from ..data.names import image_files, stem_of
from ..data.reader import Description, Georeference, ReadOptions
from ..errors import DataError
from ..segmenter import Segmenter

PLACES = (b"<GeoTransform", b"<GCPList", b'domain="RPC"')  # places of pixels in an .aux.xml file
NAME_BYTES = 255  # longest name of a file


class Source(NamedTuple):
    """An image file, and the path of its maps: relative to the output folder, without an ending."""

    path: Path
    stem: str


class Job(NamedTuple):
    """One page of an image file, and the paths of its maps.

    Attributes:
        path: the image file.
        name: the path, with #1 and so on for the pages of a file that has several.
        page: index of the page.
        size: (rows, columns).
        place: the georeference of the image, or None.
        labels: path of the label map: a GeoTIFF if the image has a georeference, else a PNG.
        confidence, overlay: paths of further maps. None: they are not asked for.
        key: see the module.
    """

    path: Path
    name: str
    page: int
    size: tuple[int, int]
    place: Georeference | None
    labels: Path
    confidence: Path | None
    overlay: Path | None
    key: str

    def check_names(self, beside: str) -> None:
        """Raise DataError if a file's name is too long.

        Args:
            beside: ending that is appended to the name of a label map that is a GeoTIFF, or "".
        """
        names = [file.name for file in self.files]
        names[0] += beside if self.place is not None else ""
        for name in names:
            if len(os.fsencode(name)) > NAME_BYTES:
                raise DataError(f"image {self.name}: its map {name} has a name above {NAME_BYTES} bytes; rename it")

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.labels, self.confidence, self.overlay) if path is not None]


def find_sources(given: Sequence[Path], out: Path) -> list[Source]:
    """The image files. Images of a folder keep their relative paths. A single image keeps its name.

    Files in the output folder are not images of a folder.

    Raises:
        DataError: a source does not exist or has no image, two images would have the same label
            map, or a label map would replace an image.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise DataError(f"--out {out} is no folder; choose another")
    found: dict[str, Path] = {}
    inside = real(out)
    for source in given:
        if source.is_dir():
            images, root = image_files(source), source
            outside = [path for path in images if inside not in real(path).parents]
            if images and not outside:
                raise DataError(f"--out {out} is the folder of the images; choose another")
            if not images:
                raise DataError(f"{source} holds no file in a format that is read")
            images = outside
        elif source.exists():
            images, root = [source], source.parent
        else:
            raise DataError(f"{source} does not exist; give an image or a folder of images")
        for image in images:
            stem = stem_of(image, root)
            other = found.setdefault(stem, image)
            if other != image:
                raise DataError(f"{other} and {image} would both be written to {out / stem}")
            for target in (out / f"{stem}.png", out / f"{stem}.tif"):
                if real(target) == real(image):
                    raise DataError(f"{target} would be written over the image itself; choose another --out")
    return [Source(path, stem) for stem, path in found.items()]


def real(path: Path) -> Path:
    """The path with all links resolved. A link to itself stays as it is."""
    return Path(os.path.realpath(path))


def jobs_of(source: Source, segmenter: Segmenter, out: Path, recipe: str, confidence: bool, overlay: bool) -> list[Job]:
    """The jobs of an image file: one, or one for each page with pages="each".

    Args:
        source: the image file.
        segmenter: the segmenter of a run.
        out: the output folder.
        recipe: result of `recipe_key`.
        confidence, overlay: whether these maps are made too.

    Raises:
        DataError: the file cannot be read.
    """
    reading = segmenter.labelling.data.reading
    state = [(file.st_size, file.st_mtime_ns) for file in map(os.stat, files_of(source.path))]
    found, jobs = list(pages_of(source.path, reading)), []
    for page, (described, place) in enumerate(found):
        ending = ".png" if place is None else ".tif"
        number = f"#{page + 1}" if len(found) > 1 else ""
        stem = out / f"{source.stem}{number}"
        jobs.append(
            Job(
                source.path,
                f"{source.path}{number}",
                page,
                (described.height, described.width),
                place,
                stem.with_name(f"{stem.name}{ending}"),
                stem.with_name(f"{stem.name}.confidence{ending}") if confidence else None,
                stem.with_name(f"{stem.name}.overlay.png") if overlay else None,
                digest([recipe, state, page, place]),
            )
        )
    return jobs


def pages_of(path: Path, reading: ReadOptions) -> Iterator[tuple[Description, Georeference | None]]:
    """The description and the georeference of each page of an image file that is read.

    Raises:
        DataError: the file cannot be read.
    """
    described, pages = described_with(path, reading)
    yield described, place_of(path, described, 0)
    for page in range(1, pages if reading.pages == "each" else 1):
        described = described_with(path, reading, page)[0]
        yield described, place_of(path, described, page)


def check_transforms(sources: Sequence[Source], reading: ReadOptions) -> None:
    """Raise DataError if no image has a georeference by a transform. Images that cannot be read are left
    out, unless all are such.
    """
    readable = False
    for source in sources:
        with contextlib.suppress(DataError):
            for _, place in pages_of(source.path, reading):
                if place is not None and place.has_transform:
                    return
                readable = True
    if readable:
        raise DataError("--polygons needs an image with a georeference by a transform, and none of these has one")


def files_of(path: Path) -> list[Path]:
    """The image file, and the further files that it is read from."""
    return [path, *filter(os.path.exists, companions(path))]


def place_of(path: Path, described: Description, page: int) -> Georeference | None:
    """The georeference of a page, from its own data, or from a world file or RPCs beside the file.

    Raises:
        DataError: it has a georeference and rasterio is missing.
    """
    if described.georeferenced:
        return georeference_of(path, page)
    ending = path.suffix
    ends = [f"{ending[:2]}{ending[-1:]}w", f"{ending}w", ".wld", ".rpb", "_rpc.txt"]
    files = [path.with_name(f"{path.stem}{spelled}") for end in ends for spelled in (end.lower(), end.upper())]
    beside = path.with_name(f"{path.name}.aux.xml")
    # Not Path.is_file, which raises where a name is too long.
    if any(map(os.path.isfile, files)) or (
        os.path.isfile(beside) and any(place in beside.read_bytes() for place in PLACES)
    ):
        return georeference_of(path, page)
    return None


def recipe_key(segmenter: Segmenter, table: np.ndarray, names: Sequence[str] | None) -> str:
    """A digest of the labelling and of the options that change the content of the maps."""
    state = segmenter.labelling.state()
    weights = hashlib.sha256()
    for name, value in sorted(flat(state)):
        weights.update(name.encode() + b"\0")
        weights.update(
            value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
        )
    return digest([weights.hexdigest(), segmenter.scale, table.tolist(), list(names or [])])


def flat(state: Any, name: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested dicts, with their names."""
    if isinstance(state, dict):
        return [leaf for key, value in state.items() for leaf in flat(value, f"{name}.{key}")]
    return [(name, state)]


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
