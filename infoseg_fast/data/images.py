"""Reading image and label files. No value is clipped, narrowed or left out in silence.

tifffile reads TIFF, rasterio (extra `geo`) JPEG 2000 and the rasters of GDAL, imagecodecs 16-bit
PNG, JPEG XL and deep AVIF, and Pillow all other formats. Orientation tags are not applied, neither
to images nor to labels. Every fault is a DataError that names the file.
"""

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ..errors import DataError, first_line
from . import codecs, raster
from .pillow import JPEG2000_MAGIC, PNG_MAGIC, Jpeg2000Reader, NotForPillowError, PillowReader, PngReader, png_bits
from .pillow import endings as pillow_endings
from .reader import MAX_BANDS, MAX_BYTES, Description, Georeference, Reader, ReadOptions, fits
from .tiff import JPEG, MAGIC, YCBCR, TiffReader

IGNORE = 255  # label value of a pixel without ground truth, and of a pixel without data
OPEN_FILES = 8  # number of files that are kept open for the next read
T = TypeVar("T")


class Image(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: [c, H, W] in the stored dtype and native byte order, with 0 for a value that is not
            finite.
        valid: bool [H, W], False where a pixel has no data: it has the no-data value in every band,
            the file's mask excludes it, its alpha is 0 (alpha="mask"), or a band is not finite.
            None: all pixels have data.
    """

    pixels: np.ndarray
    valid: np.ndarray | None


def describe(path: str | os.PathLike, page: int = 0) -> Description:
    """The metadata of a page. Its pixels are not decoded."""
    return _with_reader(Path(path), "image", lambda reader: _described(reader, page))


def page_count(path: str | os.PathLike) -> int:
    """Number of pages at full resolution, without overviews and masks."""
    return _with_reader(Path(path), "image", lambda reader: reader.pages)


def read_with(
    path: str | os.PathLike, options: ReadOptions, page: int = 0, window: tuple[int, int, int, int] | None = None
) -> Image:
    """An image, or a part of it.

    TIFF files and rasters decode only the blocks that the part touches. Other formats are decoded
    as a whole, and the file that was read last stays in memory.

    Args:
        path: the file.
        options: how it is read.
        page: index of the page.
        window: (row, column, height, width) of the part. None: the whole image.

    Raises:
        DataError: the file is damaged or not accepted, or has no such bands, page or part.
    """

    def read(reader: Reader) -> Image:
        described = checked(reader, options, page)
        row, column, height, width = window or (0, 0, described.height, described.width)
        if (
            min(row, column, height - 1, width - 1) < 0
            or row + height > described.height
            or column + width > described.width
        ):
            raise DataError(f"no part of {height} x {width} pixels at ({row}, {column}) lies within the image")
        size = height * width * described.bands * described.dtype.itemsize
        if size > options.max_bytes:
            raise DataError(
                f"{size / 2**30:.3g} GiB when decoded; at most {options.max_bytes / 2**30:.3g} are accepted "
                "(--max-bytes)"
            )
        rows, columns = slice(row, row + height), slice(column, column + width)
        pixels = reader.read(page, rows, columns)
        expected = (described.bands, height, width)
        if pixels.shape != expected:
            raise DataError(f"decoded to the shape {pixels.shape}, by its header {expected} (damaged)")
        mask = reader.mask(page, rows, columns)
        pixels, valid = _validated(pixels, mask, described, options)
        return Image(np.ascontiguousarray(pixels), valid)

    return _with_reader(Path(path), "image", read)


def georeference_of(path: str | os.PathLike, page: int = 0) -> Georeference | None:
    """The georeference of a page, from the file or from files beside it. None: it has none.

    Raises:
        DataError: rasterio is not installed.
    """
    return _with_reader(Path(path), "image", lambda reader: reader.georeference(page))


def companions(path: str | os.PathLike) -> list[Path]:
    """Further files that the pixels of an image or their mask are read from, such as the sources of
    a VRT.
    """
    return _with_reader(Path(path), "image", lambda reader: reader.companions())


def band_count(described: Description, options: ReadOptions) -> int:
    """Number of bands that `read_with` gives with these options."""
    if options.bands is not None:
        return len(options.bands)
    return described.bands - (options.alpha == "mask" and described.alpha)


def checked(reader: Reader, options: ReadOptions, page: int = 0) -> Description:
    """The description of a page.

    Raises:
        DataError: the page cannot be read with these options.
    """
    if reader.pages > 1 and options.pages is None:
        raise DataError(f"{reader.pages} pages; --pages first or --pages each says which are read")
    if not 0 <= page < reader.pages:
        raise DataError(f"no page {page + 1}: the file has {reader.pages}")
    return accepted(_described(reader, page), options)


def accepted(described: Description, options: ReadOptions) -> Description:
    """`described` itself.

    Raises:
        DataError: a page with this description cannot be read with these options.
    """
    if options.bands is not None and max(options.bands) > described.bands:
        raise DataError(f"no band {max(options.bands)} (--bands): the image has {described.bands}")
    if band_count(described, options) > MAX_BANDS:
        raise DataError(f"{described.bands} bands; --bands chooses 1 to {MAX_BANDS} of them")
    return described


def described_with(path: Path, options: ReadOptions, page: int = 0) -> tuple[Description, int]:
    """The description of a page, and the number of pages.

    Raises:
        DataError: the page cannot be read with these options.
    """
    return _with_reader(path, "image", lambda reader: (checked(reader, options, page), reader.pages))


def _described(reader: Reader, page: int) -> Description:
    described = reader.describe(page)
    if described.height < 1 or described.width < 1 or described.bands < 1:
        raise DataError(f"{described.height} x {described.width} pixels of {described.bands} bands")
    return described


def _validated(
    pixels: np.ndarray, mask: np.ndarray | None, described: Description, options: ReadOptions
) -> tuple[np.ndarray, np.ndarray | None]:
    """The chosen bands, and the pixels with data."""
    invalid = np.zeros(pixels.shape[1:], dtype=bool) if mask is None else ~mask
    if options.alpha == "mask" and described.alpha:
        invalid |= pixels[-1] == 0
    if options.bands is not None:
        pixels = pixels[[band - 1 for band in options.bands]]
    elif options.alpha == "mask" and described.alpha:
        pixels = pixels[:-1]
    for value in (described.nodata, options.nodata):
        if value is not None and not np.isnan(value) and fits(value, pixels.dtype):
            invalid |= (pixels == pixels.dtype.type(value)).all(axis=0)
    if pixels.dtype.kind == "f":
        finite = np.isfinite(pixels)
        if not finite.all():
            invalid |= ~finite.all(axis=0)
            pixels = np.where(finite, pixels, pixels.dtype.type(0))
    return pixels, ~invalid if invalid.any() else None


def read_label(path: Path, num_classes: int | None = None, page: int = 0, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """A label map uint8 [H, W] from a file with one band of any integer dtype. A palette gives its
    indices. Pixels without data become IGNORE.

    Raises:
        DataError: the file is damaged, a JPEG or not accepted, or a value is neither below `num_classes`
            (None: below 255) nor 255.
    """

    def read(reader: Reader) -> np.ndarray:
        described = _label_header(reader, page)
        height, width = described.height, described.width
        if height * width * described.dtype.itemsize > max_bytes:
            raise DataError(f"{height} x {width} pixels are too many for one label map (--max-bytes)")
        whole = slice(0, height), slice(0, width)
        values = reader.read(page, *whole, raw=True)
        if len(values) != 1 or values.dtype.kind not in "iub":
            raise DataError(f"{len(values)} bands of {values.dtype}; a label map has one band of integers")
        values, mask = values[0], reader.mask(page, *whole)
        ignored = values == IGNORE
        if mask is not None:
            ignored |= ~mask
        if described.nodata is not None and fits(described.nodata, values.dtype):
            ignored |= values == values.dtype.type(described.nodata)
        limit = IGNORE if num_classes is None else num_classes
        wrong = ~ignored & ((values < 0) | (values >= limit))
        if wrong.any():
            most = "" if num_classes is None else " (the number of classes)"
            raise DataError(
                f"holds {int(values[wrong].max() if (values[wrong] >= limit).any() else values[wrong].min())}; values "
                f"from 0, below {limit}{most}, and {IGNORE} (ignore) are accepted"
            )
        return np.where(ignored, np.uint8(IGNORE), values.astype(np.uint8))

    return _with_reader(path, "label", read)


def label_size(path: Path, page: int = 0) -> tuple[int, int]:
    """(rows, columns) of a label map."""
    return _with_reader(path, "label", lambda reader: _label_header(reader, page)[:2])


def _label_header(reader: Reader, page: int) -> Description:
    if reader.is_jpeg:
        raise DataError("JPEG changes the values of labels; give a PNG")
    return reader.describe(page)


def image_endings() -> set[str]:
    """Endings of image files, in lower case."""
    return (
        pillow_endings()
        | codecs.endings()
        | {".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm"}
        | (set(raster.ENDINGS) if raster.available() else set())
    )


def _with_reader(path: Path, what: str, use: Callable[[Reader], T]) -> T:
    """The result of `use` for the open file. Every exception becomes a DataError that names it."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError("not a regular file")
        if found.st_size == 0:
            raise DataError("empty (zero bytes)")
        return use(_reader(path, found.st_mtime_ns, found.st_size, os.getpid()))
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except Exception as error:  # the libraries raise many kinds on a damaged file
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(f"{what} {path} cannot be read: {reason}") from error


@lru_cache(maxsize=OPEN_FILES)
def _reader(path: Path, modified: int, size: int, process: int) -> Reader:
    """The reader of a file. The other arguments are keys of the cache: the file is opened again if
    it changed, or in a forked process.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if head.startswith(MAGIC):
        tiff = TiffReader(path)
        header = tiff._pages[0]
        # Pillow decodes the colours of this layout, tifffile does not.
        return PillowReader(path) if header.photometric == YCBCR and header.compression not in JPEG else tiff
    if head.startswith(JPEG2000_MAGIC):
        return raster.RasterReader(path) if raster.available() else Jpeg2000Reader(path)
    if head.startswith(PNG_MAGIC) and png_bits(head) == 16:
        return PngReader(path)
    try:
        picture = PillowReader(path)
        # GDAL reads rows of a PNG one after the other, Pillow the whole image.
        by_rows = head.startswith(PNG_MAGIC) and picture.plain and raster.available()
        return raster.RasterReader(path) if by_rows else picture
    except NotForPillowError as error:
        if codec := codecs.codec_of(head):
            return codecs.CodecReader(path, codec)
        if raster.available():
            try:
                return raster.RasterReader(path)
            except OSError as failure:
                raise DataError(f"{error}, and GDAL cannot read it: {first_line(failure)}") from failure
        raise DataError(f"{error}; rasters of GDAL need rasterio: pip install 'infoseg-fast[geo]'") from None
