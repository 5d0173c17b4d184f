"""Rasters of GDAL by rasterio (extra `geo`), and the georeference of a file."""

import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import DataError, first_line
from .reader import Description, Georeference, Reader, accepted_dtype, fits, with_palette

LISTED = 8  # number of subdatasets that a message names
CACHE_MEGABYTES = 64  # size of GDAL's block cache
# Endings of rasters that neither Pillow nor tifffile reads.
ENDINGS = (".img", ".vrt", ".dat", ".bil", ".bip", ".bsq", ".asc", ".dem", ".hgt", ".nc", ".ntf", ".dt0", ".dt1",
           ".dt2", ".rst", ".sdat", ".grd", ".pix", ".ers", ".kea", ".jp2", ".j2k")  # fmt: skip

# Endings of files beside a raster that its pixels do not depend on: metadata, place, overviews.
DISPENSABLE = (".aux.xml", ".prj", ".ovr", ".rrd", ".wld", ".tfw", ".jgw", ".pgw", ".j2w")


def available() -> bool:
    return importlib.util.find_spec("rasterio") is not None


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """A context with a path of an existing file or folder that is UTF-8, since GDAL takes no other."""
    name = os.fspath(path)
    if name == name.encode(errors="replace").decode():
        yield name
        return
    number = os.open(path, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def opened(path: Path, offset: int | None = None):
    """The rasterio dataset.

    Args:
        path: the file.
        offset: of a TIFF file: position of the header of the page, bytes. None: the first page.
    """
    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES), utf8_path(path) as name:
            return rasterio.open(name if offset is None else f"GTIFF_DIR:off:{offset}:{name}")


def georeference(path: Path, offset: int | None = None) -> Georeference | None:
    """The georeference of a raster, or of a page of a TIFF file (`opened`). None: it has none.

    Raises:
        DataError: rasterio is not installed.
    """
    if not available():
        raise DataError("it is georeferenced, which needs rasterio: pip install 'infoseg-fast[geo]'")
    import rasterio

    try:
        with opened(path, offset) as dataset:
            return _georeference_of(dataset)
    except rasterio.errors.RasterioIOError as error:
        raise DataError(
            f"its place: GDAL says {first_line(error).rstrip('.')}; convert the image to GeoTIFF, or move the files "
            "beside it that give its place"
        ) from error


def _georeference_of(dataset) -> Georeference | None:
    (points, crs), found = dataset.gcps, ()
    rpcs = tuple(sorted(dataset.tags(ns="RPC").items()))
    if dataset.crs is not None or not dataset.transform.is_identity:
        crs = dataset.crs
    elif points:
        found = tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)
    elif not rpcs:
        return None
    return Georeference("" if crs is None else crs.to_wkt(), tuple(dataset.transform)[:6], found, rpcs)


class RasterReader(Reader):
    """A raster that GDAL opens."""

    pages = 1

    def __init__(self, path: Path) -> None:
        self.path, self._dataset, self._lock = path, opened(path), threading.Lock()
        if not self._dataset.count:
            inner = self._dataset.subdatasets
            raise DataError(
                f"the raster has no band but {len(inner)} subdatasets ({', '.join(inner[:LISTED])}"
                f"{', ...' if len(inner) > LISTED else ''}); write one of them as a GeoTIFF with gdal_translate"
            )
        self._palette = self._colours()
        self._stored_nodata = self._nodata_of_stored_values()

    def describe(self, page: int) -> Description:
        dataset = self._dataset
        if len(set(dataset.dtypes)) > 1:
            raise DataError(f"bands of several types ({', '.join(dict.fromkeys(dataset.dtypes))}) are not accepted")
        if dataset.dtypes[0].startswith("complex"):
            raise DataError(f"values of {dataset.dtypes[0]} are not accepted")
        from rasterio.enums import ColorInterp

        bands, dtype = dataset.count, accepted_dtype(np.dtype(dataset.dtypes[0]))
        if self._palette is not None:
            bands, dtype = self._palette.shape[0], self._palette.dtype
        return Description(
            dataset.height,
            dataset.width,
            bands,
            dtype,
            alpha=dataset.count > 1 and dataset.colorinterp[-1] == ColorInterp.alpha,
            nodata=None if self._stored_nodata else dataset.nodata,
            masked=self._masked() or self._stored_nodata is not None,
            windowed=True,
            georeferenced=_georeference_of(dataset) is not None,
        )

    def read(self, page: int, rows: slice, columns: slice, raw: bool = False) -> np.ndarray:
        import rasterio
        from rasterio.windows import Window

        # GDAL fixes the size of its cache at the first read.
        with self._lock, rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES):
            pixels = self._dataset.read(window=Window.from_slices(rows, columns))
        if self._palette is not None and not raw:
            return with_palette(self._palette, pixels)
        return pixels.astype(accepted_dtype(pixels.dtype), copy=False)

    def _colours(self) -> np.ndarray | None:
        """The palette [3, entries] of a raster of indices, or None."""
        from rasterio.enums import ColorInterp

        if self._dataset.count > 1 or self._dataset.colorinterp[0] != ColorInterp.palette:
            return None
        table = self._dataset.colormap(1)
        colours = np.zeros((3, max(table) + 1), np.uint8)
        for index, colour in table.items():
            colours[:, index] = colour[:3]
        return colours

    def _nodata_of_stored_values(self) -> list[float | None] | None:
        """The no-data value of each band where one value for the pixels does not describe them: bands
        have different ones, or the pixels are colours of a palette. None: elsewhere.
        """
        values = list(self._dataset.nodatavals)
        alike = len({repr(value) for value in values}) == 1
        return values if not alike or (self._palette is not None and values[0] is not None) else None

    def _masked(self) -> bool:
        from rasterio.enums import MaskFlags

        flags = self._dataset.mask_flag_enums[0]
        return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags

    def mask(self, page: int, rows: slice, columns: slice) -> np.ndarray | None:
        from rasterio.windows import Window

        mask = None
        if self._masked():
            with self._lock:
                mask = self._dataset.read_masks(1, window=Window.from_slices(rows, columns)) != 0
        if self._stored_nodata is not None:
            stored = self.read(page, rows, columns, raw=True)
            present = np.zeros(stored.shape[1:], bool)
            for band, nodata in zip(stored, self._stored_nodata, strict=True):
                known = nodata is not None and fits(nodata, band.dtype)
                present |= band != band.dtype.type(nodata) if known else True
            mask = present if mask is None else mask & present
        return mask

    def companions(self) -> list[Path]:
        others = (name for name in self._dataset.files if not name.lower().endswith(DISPENSABLE))
        return [path for path in map(Path, others) if path != self.path]
