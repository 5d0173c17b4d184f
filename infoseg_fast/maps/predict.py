"""The prediction of many images, or of images larger than memory: reading, computing and writing at
the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from tqdm import tqdm

from ..data.base import to_channels
from ..data.images import IGNORE, read_with
from ..data.names import read_names
from ..errors import DataError
from ..palette import as_rgb, coloured, overlaid, palette
from ..segmenter import Part, Segmenter
from ..signals import Stopped, StopSignals
from ..tiling import Band, Plan
from .areas import AreaTable
from .jobs import Job, find_sources, jobs_of, recipe_key
from .polygons import PolygonFile
from .writers import GeoTiffWriter, MapWriter, PngWriter, UnwrittenError, counts_of, key_of

READ_AHEAD = 2  # parts of images
WRITE_BEHIND = 2  # groups of rows
MAX_CLUSTERS = 255  # 255 marks pixels without data
ENDINGS = (".png", ".tif", ".confidence.png", ".confidence.tif", ".overlay.png")
T = TypeVar("T")


@dataclass(frozen=True)
class Products:
    """What `predict` makes beside the label maps.

    Attributes:
        overlay: <stem>.overlay.png, the labels in colour over the image.
        match: labels are classes instead of clusters, by the mapping of the run's last evaluation;
            255 for a cluster without a class.
        confidence: <stem>.confidence.png or .tif, the probability of the label in per cent.
        names: a text file with the names of the clusters, one a line.
        areas: a CSV file of the pixels and areas of each image and label.
        polygons: a GeoPackage of the regions of equal labels.
    """

    overlay: bool = False
    match: bool = False
    confidence: bool = False
    names: Path | None = None
    areas: Path | None = None
    polygons: Path | None = None


@dataclass
class Outcome:
    """What `predict` did: numbers of label maps, and messages, one a line.

    Attributes:
        written: maps that were made, `replaced` of them in place of a file that was there.
        skipped: maps that were there already.
        failures: a line for each image that failed.
        notes: lines of what the user should know.
    """

    written: int = 0
    replaced: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Labels:
    """What the labels of the maps are.

    Attributes:
        table: [256] uint8, the label of each cluster.
        number: of labels.
        names: of the labels, or None.
    """

    def __init__(self, segmenter: Segmenter, products: Products) -> None:
        if segmenter.num_clusters > MAX_CLUSTERS:
            raise DataError(
                f"label maps take at most {MAX_CLUSTERS} clusters, since 255 marks pixels without data; the run has "
                f"{segmenter.num_clusters}"
            )
        self.table, self.number = np.arange(256, dtype=np.uint8), segmenter.num_clusters
        self.names: list[str] | None = None
        if products.match:
            if segmenter.mapping is None:
                raise DataError(
                    "--match: no evaluation has matched this checkpoint's clusters to classes; run infoseg eval first"
                )
            if products.names is not None:
                raise DataError("--names names clusters, and --match writes classes; leave one of them out")
            mapping, self.names = np.array(segmenter.mapping), segmenter.labelling.data.class_names
            self.table[: len(mapping)] = np.where(mapping < 0, IGNORE, mapping)
            self.number = max(int(mapping.max()) + 1, len(self.names or []))
        elif products.names is not None:
            self.names = read_names(products.names)
            if len(self.names) != self.number:
                raise DataError(
                    f"--names {products.names} has {len(self.names)} names; the run has {self.number} clusters"
                )


def predict(segmenter: Segmenter, sources: Sequence[Path], out: Path, products: Products | None = None) -> Outcome:
    """Write a label map of each image, of its size. Pixels without data are 255.

    An image with a georeference gives a GeoTIFF in its place, any other an 8-bit PNG. The images
    are read, scaled and resized as the training images were. Maps that a former call has finished
    with the same checkpoint, options and image are kept.

    Args:
        segmenter: of a run.
        sources: images, or folders whose images are all taken, with their subfolders.
        out: the folder to write to. Images of a folder keep their relative paths.
        products: what is made beside the label maps.

    Raises:
        DataError: there is no image, every image failed, an option does not fit, or no map can be
            written. Where one cannot after others could, it is the last failure of the outcome,
            which then lacks the images after it and the tables.
        Stopped: a signal ended the call. Maps that were finished stay.
    """
    products = products or Products()
    labels = Labels(segmenter, products)
    data = segmenter.labelling.data
    segmenter.scale = data.scale * data.raw_scale
    found = find_sources(sources, out)
    areas = AreaTable(products.areas, labels.number, labels.names) if products.areas else None
    polygons = PolygonFile(products.polygons, labels.names) if products.polygons else None
    recipe, outcome = recipe_key(segmenter, labels.table, labels.names), Outcome()

    made: dict[Path, str] = {}  # the files of this call, with the images that they are made of

    def read() -> Iterator[Message]:
        for source in found:
            try:
                for job in jobs_of(source, segmenter, out, recipe, products.confidence, products.overlay):
                    for file in job.files:
                        if file in made:
                            raise DataError(f"image {job.name}: {file} is made of {made[file]} already; rename one")
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

    def finish(maps: Maps) -> None:
        outcome.written += maps.finish()

    bar = tqdm(total=len(found), desc="predicting", unit="image", disable=None)
    try:
        with (
            StopSignals() as stop, bar, polygons or contextlib.nullcontext(), OnlyWriter(out) as lock,
            Ahead(read(), READ_AHEAD) as messages, Behind(WRITE_BEHIND) as behind,
        ):  # fmt: skip
            stop.defer()
            for message in messages:
                stop_if_signalled()
                if isinstance(message, DamagedError):
                    outcome.failures.append(str(message))
                    continue
                assert isinstance(message, Start)
                maps = Maps(message.job, labels, segmenter, areas, polygons)
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
    """The next parts are of this job; it has none without a plan, since its files are there."""

    job: Job
    plan: Plan | None


class DamagedError(Exception):
    """An image cannot be read."""


Message: TypeAlias = Start | Band | DamagedError


def bands(messages: Iterator[Message], check: Callable[[], None]) -> Iterator[Band]:
    """The parts of one image; raises DamagedError, and what `check` raises before each."""
    for message in messages:
        check()
        if isinstance(message, DamagedError):
            raise message
        assert isinstance(message, Band)
        yield message


class Rows(NamedTuple):
    """Whole rows of a map from `first` on: labels, and confidence or None, uint8 [n, columns]."""

    first: int
    labels: np.ndarray
    confidence: np.ndarray | None


def rows_of(parts: Iterator[Part], columns: int) -> Iterator[Rows]:
    """Whole rows from parts that lie beside one another."""
    for (rows, place), labels, confidence in parts:
        if place.start == 0:
            made = Rows(
                rows.start,
                *(None if x is None else np.empty((len(rows), columns), np.uint8) for x in (labels, confidence)),
            )
        for whole, part in zip(made[1:], (labels, confidence), strict=True):
            if whole is not None:
                whole[:, place.start : place.stop] = part[0].cpu().numpy()
        if place.stop == columns and len(rows):
            yield made


class Maps:
    """The files of one job, in the thread that writes."""

    def __init__(
        self, job: Job, labels: Labels, segmenter: Segmenter, areas: AreaTable | None, polygons: PolygonFile | None
    ) -> None:
        self.job, self.labels, self.data = job, labels, segmenter.labelling.data
        self.areas, self.polygons = areas, polygons
        self.counts = np.zeros(256, np.int64)
        self.writers: list[MapWriter] = []
        self._abandoned = False

    def _open(self) -> None:
        job, number = self.job, self.labels.number
        if job.place is None:
            self.writers.append(PngWriter(job.labels, job.size, job.key))
        else:
            colours = palette(number)
            self.writers.append(GeoTiffWriter(job.labels, job.size, job.key, job.place, colours, self.labels.names))
        if job.confidence is not None and job.place is None:
            self.writers.append(PngWriter(job.confidence, job.size, job.key))
        elif job.confidence is not None and job.place is not None:
            self.writers.append(GeoTiffWriter(job.confidence, job.size, job.key, job.place))
        if job.overlay is not None:
            self.writers.append(PngWriter(job.overlay, job.size, job.key, bands=3))

    def write(self, rows: Rows) -> None:
        """Add rows to the files. What was written is removed if that fails."""
        if self._abandoned:
            return
        try:
            if not self.writers:
                self._open()
            labels = self.labels.table[rows.labels]
            self.counts += np.bincount(labels.ravel(), minlength=256)
            made = [labels, rows.confidence] if rows.confidence is not None else [labels]
            if self.job.overlay is not None:
                made.append(self._overlay(rows.first, labels))
            for writer, content in zip(self.writers, made, strict=True):
                writer.write(content)
        except BaseException:
            self.abandon()
            raise

    def _overlay(self, first: int, labels: np.ndarray) -> np.ndarray:
        """The labels in colour over the image's rows."""
        window = first, 0, *labels.shape
        image = read_with(self.job.path, self.data.reading, self.job.page, window)
        pixels = self.data.scaling.to_float(to_channels(image.pixels, self.data.channels)).numpy()
        return overlaid(as_rgb(pixels), coloured(labels, self.labels.number))

    def finish(self) -> bool:
        """Give the files their names, the label map last, and add it to the tables. False where
        they were abandoned.
        """
        if self._abandoned:
            return False
        try:
            for writer in reversed(self.writers):
                writer.finish()
        except BaseException:
            self.abandon()
            raise
        self._add()
        return True

    def add_finished(self) -> None:
        """Add a label map that was there to the tables."""
        if self.areas is not None:
            self.counts = counts_of(self.job.labels)
        self._add()

    def _add(self) -> None:
        name = self.job.name
        if self.areas is not None:
            self.areas.add(name, self.counts, self.job.place)
        if self.polygons is not None:
            self.polygons.add(name, self.job)

    def abandon(self) -> None:
        """Remove what was written."""
        self._abandoned = True
        for writer in self.writers:
            writer.abandon()


class OnlyWriter:
    """A lock of the output folder, so that two calls do not write the same files.

    Args:
        out: the folder. It is made when the lock is taken, and removed if nothing is written to it.
    """

    def __init__(self, out: Path) -> None:
        self.out, self._handle = out, None
        self._new = False

    def take(self) -> None:
        """Hold the folder until the end; once is enough.

        Raises:
            DataError: another call holds it, or it cannot be made.
        """
        if self._handle is not None:
            return
        try:
            self._new = not self.out.exists()
            self.out.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.out, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"--out {self.out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"--out {self.out} is in use: another infoseg predict writes to it") from error
        except OSError:  # a file system without locks
            pass

    def __enter__(self) -> OnlyWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
        if self._new:
            with contextlib.suppress(OSError):  # it holds files
                self.out.rmdir()


def stale(job: Job, made: Collection[Path]) -> list[str]:
    """A line for each map of this image that another call made and this one (`made`) has not
    replaced.
    """
    stem = job.labels.name.removesuffix(job.labels.suffix)
    others = [job.labels.with_name(f"{stem}{end}") for end in ENDINGS]
    return [
        f"{path} is of an earlier call, with another checkpoint or other options"
        for path in others
        if path not in made and key_of(path) not in (None, job.key)
    ]


class Ahead(Iterator[T]):
    """The items of an iterator, made by a thread that is at most `size` items ahead."""

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items, self._made, self._stopped = items, queue.Queue[Any](size), False
        self._thread = threading.Thread(target=self._make, name="reader", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        last: Any = None  # an exception, or None at the end
        try:
            for item in self._items:
                self._made.put((item,))
                if self._stopped:
                    break
        except BaseException as error:
            last = error
        self._made.put(last)

    def __next__(self) -> T:
        made = self._made.get()
        if isinstance(made, tuple):
            return made[0]
        self._made.put(made)  # for a further call
        if made is None:
            raise StopIteration
        raise made

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped = True
        while self._thread.is_alive():  # the thread may wait for room
            with contextlib.suppress(queue.Empty):
                self._made.get(timeout=0.05)


class Behind:
    """Calls that one thread makes in order. `submit` waits while more than `size` of them wait, and
    raises what an earlier one raised. All are made before it ends, after an error too.
    """

    def __init__(self, size: int) -> None:
        self._size, self._pool = size, ThreadPoolExecutor(1)
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(function, *arguments))
        while len(self._waiting) > self._size:
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None:
            while self._waiting:
                self._waiting.popleft().result()
        self._pool.shutdown()
