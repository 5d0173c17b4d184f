"""The map files of one image, written row by row by one thread."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.base import to_channels
from ..data.images import read_with
from ..palette import as_rgb, coloured, overlaid, palette
from ..segmenter import Segmenter
from ..tile_labels import Part
from .areas import AreaTable
from .jobs import Job
from .labels import Labels
from .polygons import PolygonFile
from .writers import GeoTiffWriter, MapWriter, PngWriter, counts_of, key_of

ENDINGS = (".png", ".tif", ".confidence.png", ".confidence.tif", ".overlay.png")


class Rows(NamedTuple):
    """Whole rows of the maps of an image.

    Attributes:
        first: index of the first row.
        labels: clusters, uint8 [n, columns].
        confidence: per cent, uint8 [n, columns]. None unless it was asked for.
    """

    first: int
    labels: np.ndarray
    confidence: np.ndarray | None


def rows_of(parts: Iterator[Part], columns: int) -> Iterator[Rows]:
    """Whole rows from parts of label maps [1, rows, columns], which come from left to right."""
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


class ImageMaps:
    """The map files of one job. The thread that writes calls the methods.

    Args:
        job: the image and its files.
        labels: the labels of the maps.
        segmenter: scales the image under an overlay.
        areas: table that the finished label map is added to, or None.
        polygons: file that its regions are added to, or None.
    """

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
        """Add rows to the files. If that fails the files are removed."""
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
        """Give the files their names, the label map last, and add it to the tables. Returns False
        if the files were abandoned.
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
        """Add a label map that an earlier call made to the tables."""
        if self.areas is not None:
            self.counts = counts_of(self.job.labels)
        self._add()

    def _add(self) -> None:
        if self.areas is not None:
            self.areas.add(self.job.name, self.counts, self.job.place)
        if self.polygons is not None:
            self.polygons.add(self.job)

    def abandon(self) -> None:
        """Remove the unfinished files."""
        self._abandoned = True
        for writer in self.writers:
            writer.abandon()


def stale(job: Job, made: Collection[Path]) -> list[str]:
    """A line for each map of this image that an earlier call made with another key.

    Args:
        made: the files of this call.
    """
    stem = job.labels.name.removesuffix(job.labels.suffix)
    others = [job.labels.with_name(f"{stem}{end}") for end in ENDINGS]
    return [
        f"{path} is of an earlier call, with another checkpoint or other options"
        for path in others
        if path not in made and key_of(path) not in (None, job.key)
    ]
