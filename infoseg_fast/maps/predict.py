"""Label maps of many images, or of images larger than memory. Three threads read, compute and write
at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tqdm import tqdm

from ..errors import DataError
from ..output_folder import FolderLock
from ..segmenter import Segmenter
from ..signals import Stopped, StopSignals
from ..tiling import Band, Plan
from .areas import AreaTable
from .image_maps import ImageMaps, rows_of, stale
from .jobs import Job, check_transforms, find_sources, jobs_of, recipe_key
from .labels import Labels
from .pipeline import Ahead, Behind
from .polygons import PolygonFile
from .writers import BESIDE, UnwrittenError, key_of

READ_AHEAD = 2  # parts of images
WRITE_BEHIND = 2  # groups of rows


@dataclass(frozen=True)
class Products:
    """What `predict` writes, apart from maps of clusters.

    Attributes:
        overlay: write <stem>.overlay.png, the labels in colour over the image.
        match: write classes instead of clusters, by the mapping of the run's last evaluation; 255
            for a cluster without a class.
        confidence: write <stem>.confidence.png or .tif, the probability of the label in per cent.
        names: text file to read the names of the clusters from, one a line.
        areas: CSV file to write, with the pixels and the area of each label in each image.
        polygons: GeoPackage to write, with the regions of equal labels.
    """

    overlay: bool = False
    match: bool = False
    confidence: bool = False
    names: Path | None = None
    areas: Path | None = None
    polygons: Path | None = None


@dataclass
class Outcome:
    """The result of `predict`.

    Attributes:
        written: number of label maps that were made.
        replaced: number of these that replaced a file.
        skipped: number of label maps that an earlier call had made.
        failures: a line for each image that failed.
        notes: further lines for the user.
    """

    written: int = 0
    replaced: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def predict(segmenter: Segmenter, sources: Sequence[Path], out: Path, products: Products | None = None) -> Outcome:
    """Write a label map for each image, at its size. Pixels without data are 255.

    The map of an image with a georeference is a GeoTIFF with the same georeference. Any other map
    is an 8-bit PNG. The images are read, scaled and resized as the training images were. Maps that
    an earlier call finished with the same checkpoint, options and image are kept.

    If a map cannot be written after others were, this is the last failure of the outcome. The maps
    of later images, the areas and the polygons are then missing.

    Args:
        segmenter: the segmenter of a run.
        sources: image files, and folders whose images are all taken, with their subfolders.
        out: the folder to write to. Images of a folder keep their relative paths.
        products: what is written, apart from maps of clusters. None: nothing else.

    Raises:
        DataError: there is no image, every image failed, an option does not fit (polygons, and no
            image has a transform), or no map can be written.
        Stopped: a signal ended the call. Maps that were finished stay.
    """
    products = products or Products()
    labels = Labels(segmenter, products.match, products.names)
    data = segmenter.labelling.data
    segmenter.scale = data.scale * data.raw_scale
    found = find_sources(sources, out)
    areas = AreaTable(products.areas, labels.number, labels.names) if products.areas else None
    polygons = PolygonFile(products.polygons, labels.names) if products.polygons else None
    if polygons is not None:
        check_transforms(found, data.reading)
    recipe, outcome = recipe_key(segmenter, labels.table, labels.names), Outcome()

    made: dict[Path, str] = {}  # the image of each file of this call

    def read() -> Iterator[Message]:
        for source in found:
            try:
                for job in jobs_of(source, segmenter, out, recipe, products.confidence, products.overlay):
                    job.check_names(BESIDE if labels.names else "")
                    for file in job.files:
                        if file in made:
                            raise DataError(f"image {job.name}: {file} is the map of {made[file]} already; rename one")
                        made[file] = job.name
                    if all(key_of(file) == job.key for file in job.files):
                        yield Start(job, None)
                        continue
                    plan = segmenter.plan(job.size, confidence=products.confidence)
                    yield Start(job, plan)
                    yield from segmenter.read_bands(job.path, plan, job.page)
            except DataError as error:
                yield DamagedError(error)

    def stop_if_signalled() -> None:
        if stop.received:
            raise Stopped(stop.received, f"after {outcome.written} label maps; the same command makes the others")

    def finish(maps: ImageMaps) -> None:
        outcome.written += maps.finish()

    bar = tqdm(total=len(found), desc="predicting", unit="image", disable=None)
    try:
        with (
            StopSignals() as stop, bar, polygons or contextlib.nullcontext(), FolderLock(out, "predict") as lock,
            Ahead(read(), READ_AHEAD) as messages, Behind(WRITE_BEHIND) as behind,
        ):  # fmt: skip
            stop.defer()
            for message in messages:
                stop_if_signalled()
                if isinstance(message, DamagedError):
                    outcome.failures.append(str(message))
                    continue
                assert isinstance(message, Start)
                maps = ImageMaps(message.job, labels, segmenter, areas, polygons)
                if message.plan is None:
                    outcome.skipped += 1
                    behind.submit(maps.add_finished)
                else:
                    lock.take()
                    outcome.replaced += message.job.labels.exists()
                    parts = segmenter.parts(message.plan, bands(messages, stop_if_signalled), products.confidence)
                    try:
                        for rows in rows_of(parts, message.job.size[1]):
                            behind.submit(maps.write, rows)
                            stop_if_signalled()
                    except DamagedError as error:
                        outcome.failures.append(str(error))
                        behind.submit(maps.abandon)
                    except BaseException:  # an interruption
                        behind.submit(maps.abandon)
                        raise
                    else:
                        behind.submit(finish, maps)
                outcome.notes += stale(message.job, made)
                bar.update(message.job.page == 0)
    except UnwrittenError as error:
        if not outcome.written + outcome.skipped:
            raise
        outcome.failures.append(f"{error}; the same command makes the maps that are missing")
        return outcome
    if outcome.failures and not outcome.written + outcome.skipped:
        raise DataError(outcome.failures[0])
    if areas is not None:
        areas.save()
    if polygons is not None:
        outcome.notes += polygons.finish()
    return outcome


class Start(NamedTuple):
    """The first message of a job; its parts follow. Plan None: its files exist, no part follows."""

    job: Job
    plan: Plan | None


class DamagedError(Exception):
    """An image that cannot be read."""


Message: TypeAlias = Start | Band | DamagedError


def bands(messages: Iterator[Message], check: Callable[[], None]) -> Iterator[Band]:
    """The parts of one image. Calls `check` before each part, and raises a DamagedError."""
    for message in messages:
        check()
        if isinstance(message, DamagedError):
            raise message
        assert isinstance(message, Band)
        yield message
