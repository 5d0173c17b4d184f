"""The interface of the readers of image files, with their options and the description of a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..errors import DataError

MAX_BANDS = 64
MAX_BYTES = 4 * 2**30  # decoded bytes of one read
DTYPES = tuple(map(np.dtype, ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")))
# Accepted dtypes that are widened, without loss.
WIDENED = {np.dtype(bool): np.dtype("uint8"), np.dtype("int8"): np.dtype("int16"), np.dtype("f2"): np.dtype("f4")}
PLACE_TAGS = {33550, 33922, 34264, 34735, 50844}  # GeoTIFF: pixel scale, tie points, transform, keys, RPCs
ALPHA = ("band", "mask")
PAGES = (None, "first", "each")


@dataclass(frozen=True)
class ReadOptions:
    """How image files are read.

    Attributes:
        bands: the bands to read, in this order, numbered from 1. None: all.
        nodata: value of pixels without data, in addition to the file's own no-data value.
        alpha: "band" reads an alpha channel as a band. "mask" drops it, and pixels with alpha 0
            have no data.
        pages: "first" reads the first page of a file with several pages, "each" reads every page as
            an image. None refuses such a file.
        max_bytes: largest number of decoded bytes of one read.

    Raises:
        DataError: an option is out of range.
    """

    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    alpha: Literal["band", "mask"] = "band"
    pages: Literal["first", "each"] | None = None
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.bands is not None and not (1 <= len(self.bands) <= MAX_BANDS and min(self.bands) >= 1):
            raise DataError(f"--bands takes 1 to {MAX_BANDS} numbers from 1, not {self.bands}")
        for name, choices in (("alpha", ALPHA), ("pages", PAGES)):
            if getattr(self, name) not in choices:
                accepted = " or ".join(choice for choice in choices if choice)
                raise DataError(f"--{name} must be {accepted}, not {getattr(self, name)!r}")


class Description(NamedTuple):
    """The metadata of one page of a file, read without decoding it.

    Attributes:
        height, width: pixels.
        bands: number of bands.
        dtype: one of DTYPES, in native byte order.
        alpha: whether the last band is an alpha channel.
        nodata: the value of pixels without data. None: the file names none.
        masked: whether the file has a mask of the pixels with data.
        windowed: whether a part can be read without decoding the whole page.
        georeferenced: whether the file has a transform or a coordinate reference system.
        note: a conversion that changes the values, for a message. Empty: there is none.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype
    alpha: bool = False
    nodata: float | None = None
    masked: bool = False
    windowed: bool = False
    georeferenced: bool = False
    note: str = ""


class Georeference(NamedTuple):
    """The place of the pixels of a file.

    Attributes:
        crs: coordinate reference system as WKT; "" if unknown.
        transform: (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f at
            the upper left corner of a pixel. The identity if the file has none.
        control_points: ground control points, (row, column, x, y, z) each.
        rpcs: rational polynomial coefficients (RPCs): names and text of GDAL's metadata domain RPC.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    control_points: tuple[tuple[float, float, float, float, float], ...] = ()
    rpcs: tuple[tuple[str, str], ...] = ()

    @property
    def has_transform(self) -> bool:
        """Whether the transform gives the place of a pixel. GDAL gives the identity where there is
        none.
        """
        return not self.control_points and self.transform != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Reader:
    """One open image file. Several threads may use it at once. Methods may raise any exception:
    `images` turns it into a DataError.

    Attributes:
        path: the file.
        pages: number of pages at full resolution.
        is_jpeg: whether the pixels are compressed as JPEG, which changes their values.
    """

    path: Path
    pages: int
    is_jpeg: bool = False

    def describe(self, page: int) -> Description:
        raise NotImplementedError

    def read(self, page: int, rows: slice, columns: slice, raw: bool = False) -> np.ndarray:
        """The bands [bands, rows, columns] of a part. With `raw`, palette indices and values of
        fewer than 8 bits stay as stored.
        """
        raise NotImplementedError

    def mask(self, page: int, rows: slice, columns: slice) -> np.ndarray | None:
        """The file's mask of the pixels with data, bool [rows, columns]. None: it has no mask."""
        return None

    def georeference(self, page: int) -> Georeference | None:
        """The place of a page, from the file or from files beside it. None: it has none."""
        from . import raster

        return raster.georeference(self.path)

    def companions(self) -> list[Path]:
        """Further files that the pixels or their mask are read from."""
        return []


class WholeReader(Reader):
    """A format that can only be decoded as a whole. Over all files, the page that was last read by
    parts stays in memory.
    """

    _kept: tuple[tuple, np.ndarray | None] = ((), None)

    def decode(self, page: int, raw: bool) -> np.ndarray:
        """The page [bands, height, width]. `raw` as in `read`."""
        raise NotImplementedError

    def read(self, page: int, rows: slice, columns: slice, raw: bool = False) -> np.ndarray:
        height, width = self.describe(page)[:2]
        if (rows, columns) == (slice(0, height), slice(0, width)):
            return self.decode(page, raw)
        key, pixels = WholeReader._kept
        if key != (self, page, raw):
            pixels = self.decode(page, raw)
            WholeReader._kept = (self, page, raw), pixels
        return pixels[:, rows, columns]


def accepted_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which stored values of `dtype` are read, in native byte order.

    Raises:
        DataError: the dtype is not accepted.
    """
    native = np.dtype(dtype).newbyteorder("=")
    native = WIDENED.get(native, native)
    if native not in DTYPES:
        raise DataError(f"values of {native} are not accepted, but {', '.join(map(str, DTYPES))} are")
    return native


def with_palette(colours: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The colours [3, entries] of indices, the first of the bands `pixels`, before the other bands.

    Raises:
        DataError: an index has no colour.
    """
    if pixels[0].max(initial=0) >= colours.shape[1]:
        raise DataError(f"palette index {pixels[0].max()} is beyond the {colours.shape[1]} colours of the file")
    return np.concatenate([colours[:, pixels[0]], pixels[1:]]) if len(pixels) > 1 else colours[:, pixels[0]]


def fits(value: float, dtype: np.dtype) -> bool:
    """Whether a value can be stored in the dtype."""
    if dtype.kind == "f":
        return True
    if dtype.kind not in "iu" or not float(value).is_integer():
        return False
    return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
