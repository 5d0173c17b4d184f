"""Rasters of GDAL by rasterio (extra `geo`), and the georeference of a file."""

import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import DataError
from .reader import Description, Georeference, Reader, accepted_dtype

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


def opened(path: Path):
    """The rasterio dataset."""
    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES), utf8_path(path) as name:
            return rasterio.open(name)


def georeference(path: Path) -> Georeference | None:
    """The georeference of a raster, or None.

    Raises:
        DataError: rasterio is not installed.
    """
    if not available():
        raise DataError(f"image {path} is georeferenced, which needs rasterio: pip install 'infoseg-fast[geo]'")
    with opened(path) as dataset:
        return _georeference_of(dataset)


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

    def describe(self, page: int) -> Description:
        dataset = self._dataset
        if len(set(dataset.dtypes)) > 1:
            raise DataError(f"bands of several types ({', '.join(dict.fromkeys(dataset.dtypes))}) are not accepted")
        if dataset.dtypes[0].startswith("complex"):
            raise DataError(f"values of {dataset.dtypes[0]} are not accepted")
        from rasterio.enums import ColorInterp

        return Description(
            dataset.height,
            dataset.width,
            dataset.count,
            accepted_dtype(np.dtype(dataset.dtypes[0])),
            alpha=dataset.count > 1 and dataset.colorinterp[-1] == ColorInterp.alpha,
            nodata=dataset.nodata,
            masked=self._masked(),
            windowed=True,
            georeferenced=_georeference_of(dataset) is not None,
        )

    def read(self, page: int, rows: slice, columns: slice, raw: bool = False) -> np.ndarray:
        import rasterio
        from rasterio.windows import Window

        # GDAL fixes the size of its cache at the first read.
        with self._lock, rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES):
            pixels = self._dataset.read(window=Window.from_slices(rows, columns))
        return pixels.astype(accepted_dtype(pixels.dtype), copy=False)

    def _masked(self) -> bool:
        from rasterio.enums import MaskFlags

        flags = self._dataset.mask_flag_enums[0]
        return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags

    def mask(self, page: int, rows: slice, columns: slice) -> np.ndarray | None:
        from rasterio.windows import Window

        if not self._masked():
            return None
        with self._lock:
            return self._dataset.read_masks(1, window=Window.from_slices(rows, columns)) != 0

    def georeference(self) -> Georeference | None:
        return _georeference_of(self._dataset)

    def companions(self) -> list[Path]:
        others = (name for name in self._dataset.files if not name.lower().endswith(DISPENSABLE))
        return [path for path in map(Path, others) if path != self.path]
