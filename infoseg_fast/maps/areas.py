"""The pixels and the area of each label in each image, as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import check_target, write_atomically
from ..data.reader import Georeference

COLUMNS = ("image", "class", "name", "pixels", "area", "unit")


class AreaTable:
    """A table with a line for each label of each image.

    Args:
        path: the CSV file.
        number: number of labels.
        names: names of the labels, or None.

    Raises:
        DataError: the file does not end in .csv, or cannot be written.
    """

    def __init__(self, path: Path, number: int, names: Sequence[str] | None) -> None:
        check_target("--areas", path, ".csv")
        self.path, self.number, self.names = path, number, names
        self._lines: list[list[Any]] = []

    def add(self, image: str, counts: np.ndarray, place: Georeference | None) -> None:
        """Add an image.

        Args:
            image: its path.
            counts: int64 [>= number], pixels of each label.
            place: its georeference. The area is in squares of the unit of the coordinates, and
                empty without a transform to them.
        """
        pixel, unit = (pixel_area(place), unit_of(place)) if place is not None and place.has_transform else (None, "")
        for label in range(self.number):
            name, pixels = self.names[label] if self.names else "", int(counts[label])
            self._lines.append([image, label, name, pixels, "" if pixel is None else pixels * pixel, unit])

    def save(self) -> None:
        """Write the CSV file, UTF-8. Bytes of file names that are not UTF-8 are escaped."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self._lines)
        write_atomically(self.path, text.getvalue().encode("utf-8", errors="backslashreplace"))


def pixel_area(place: Georeference) -> float:
    """The area of a pixel in squares of the unit of the coordinates."""
    a, b, _, d, e, _ = place.transform
    return abs(a * e - b * d)


def unit_of(place: Georeference) -> str:
    """The unit of the coordinates, "metre" for example; empty where it is unknown."""
    from rasterio.crs import CRS

    if not place.crs:
        return ""
    crs = CRS.from_wkt(place.crs)
    return crs.units_factor[0] or ""
