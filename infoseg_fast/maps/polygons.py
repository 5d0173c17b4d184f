"""Regions of equal labels as polygons in a GeoPackage, by rasterio and pyogrio (extra [geo])."""

from __future__ import annotations

import itertools
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import check_target
from ..data.images import IGNORE
from ..data.raster import opened
from ..errors import DataError
from .jobs import Job

CHUNK = 20_000  # polygons that are written together
NO_POLYGONS = "has no georeference by a transform, so --polygons has no region of it"


class PolygonFile:
    """A GeoPackage with one layer for each coordinate reference system.

    Each 4-connected region of pixels of one label is a feature with the fields image, class, name
    and area (in squares of the unit of the coordinates). If an error ends the context, the file is
    removed.

    Args:
        path: the file. It gets its name when `finish` returns.
        names: names of the labels, or None.

    Raises:
        DataError: a package is missing, or the file does not end in .gpkg or cannot be written.
    """

    def __init__(self, path: Path, names: Sequence[str] | None) -> None:
        try:
            import pyogrio  # noqa: F401
            import rasterio  # noqa: F401
        except ImportError as error:
            raise DataError("--polygons needs rasterio and pyogrio: pip install 'infoseg-fast[geo]'") from error
        check_target("--polygons", path, ".gpkg")
        self.path, self.names = path, names
        self.scratch = path.with_name(f".{path.stem}.tmp.gpkg")
        self.scratch.unlink(missing_ok=True)
        self._layers: dict[str, str] = {}  # layer of each coordinate reference system
        self._without: list[str] = []  # a line for each image without a georeference

    def __enter__(self) -> PolygonFile:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is not None:
            self.scratch.unlink(missing_ok=True)

    def add(self, job: Job) -> None:
        """Add the regions of a finished label map. GDAL holds the polygons of one map in memory."""
        if job.place is None or not job.place.has_transform:
            self._without.append(f"{job.name} {NO_POLYGONS}")
            return
        layer = self._layers.get(job.place.crs)
        first = layer is None
        if layer is None:
            layer = self._layers[job.place.crs] = f"labels_{len(self._layers) + 1}" if self._layers else "labels"
        found = self._regions(job)
        # The first image makes the layer, even if no pixel of it has data.
        while (chunk := list(itertools.islice(found, CHUNK))) or first:
            self._write(job, layer, chunk, append=not first)
            first = False

    @staticmethod
    def _regions(job: Job) -> Iterator[tuple[dict[str, Any], int]]:
        import rasterio
        from rasterio.features import shapes

        with opened(job.labels) as dataset:
            for geometry, value in shapes(rasterio.band(dataset, 1), connectivity=4, transform=dataset.transform):
                if int(value) != IGNORE:
                    yield geometry, int(value)

    def _write(self, job: Job, layer: str, chunk: list[tuple[dict[str, Any], int]], append: bool) -> None:
        from pyogrio.raw import write

        assert job.place is not None
        rings = [[np.array(ring, np.float64) for ring in geometry["coordinates"]] for geometry, _ in chunk]
        labels = np.array([label for _, label in chunk], np.int32)
        image = job.name.encode("utf-8", errors="backslashreplace").decode()
        fields = {
            "image": np.array([image] * len(chunk), object),
            "class": labels,
            "name": np.array([self.names[label] if self.names else "" for label in labels], object),
            "area": np.array([area_of(polygon) for polygon in rings]),
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an unknown reference system is no fault
                write(
                    self.scratch, np.array([wkb(polygon) for polygon in rings], object), list(fields.values()),
                    list(fields), layer=layer, driver="GPKG", geometry_type="Polygon", crs=job.place.crs or None,
                    append=append,
                )  # fmt: skip
        except Exception as error:  # pyogrio raises many kinds
            self.scratch.unlink(missing_ok=True)
            raise DataError(f"--polygons {self.path} cannot be written: {error}") from error

    def finish(self) -> list[str]:
        """Give the file its name. Returns a line for each image without a georeference, and one if no
        other image could be read: then there is no file.
        """
        if self._layers:
            os.replace(self.scratch, self.path)
            return self._without
        return [*self._without, f"--polygons {self.path} is not written: no image with a transform could be read"]


def wkb(rings: list[np.ndarray]) -> bytes:
    """A polygon as well-known binary, from its rings [points, 2]."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), ring.astype("<f8").tobytes()]
    return b"".join(parts)


def area_of(rings: list[np.ndarray]) -> float:
    """The area of a polygon without its holes, by the shoelace formula."""
    areas = []
    for ring in rings:
        x, y = (ring - ring[0]).T
        areas.append(abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2)
    return areas[0] - sum(areas[1:])
