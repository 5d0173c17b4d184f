"""Map files, PNG or GeoTIFF (by rasterio): written row by row, and whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import tifffile

from ..data import raster
from ..data.images import IGNORE
from ..data.pillow import opened
from ..data.raster import CACHE_MEGABYTES
from ..data.reader import Georeference
from ..errors import DataError

KEY = "infoseg"  # name of the text, or of the tag, with the key of a file
BLOCK = 256  # pixels, side of a GeoTIFF's tiles
BESIDE = ".aux.xml"  # appended to the name of a GeoTIFF: the file with the names of its values
LEVEL = 4  # deflate level: label maps are hardly smaller above it


class UnwrittenError(DataError):
    """A map cannot be written, for example since the disk is full."""


class MapWriter:
    """A file that grows by rows. It gets its name when `finish` returns.

    Args:
        path: the file.
        size: (rows, columns).
        key: the key of the file, see `jobs`.

    Raises:
        UnwrittenError: the file cannot be written; also from `write` and `finish`.
    """

    def __init__(self, path: Path, size: tuple[int, int], key: str) -> None:
        self.path, self.size, self.key = path, size, key
        # Of fixed length: the path may have the longest name that a file system takes.
        self.scratch = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]}.tmp")
        with self._named():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def write(self, rows: np.ndarray) -> None:
        """Add rows, uint8 [n, columns], or [n, columns, 3] for RGB."""
        with self._named():
            self._write(rows)

    def finish(self) -> None:
        """Give the file its name."""
        with self._named():
            self._close()
            os.replace(self.scratch, self.path)

    def abandon(self) -> None:
        """Remove the unfinished file."""
        with contextlib.suppress(Exception):
            self._close()
        with contextlib.suppress(OSError):
            self.scratch.unlink()

    @contextlib.contextmanager
    def _named(self):
        try:
            yield
        except Exception as error:  # OSError, and the errors of rasterio
            self.abandon()
            reason = getattr(error, "strerror", None) or error.__cause__ or error  # rasterio chains GDAL's
            raise UnwrittenError(f"{self.path} cannot be written: {reason}") from error

    def _open(self) -> None:
        raise NotImplementedError

    def _write(self, rows: np.ndarray) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class PngWriter(MapWriter):
    """An 8-bit PNG, grey or RGB. (Pillow encodes whole images only.)"""

    def __init__(self, path: Path, size: tuple[int, int], key: str, bands: int = 1) -> None:
        self.bands = bands
        super().__init__(path, size, key)

    def _open(self) -> None:
        self._file = open(self.scratch, "wb")  # noqa: SIM115
        self._zlib = zlib.compressobj(LEVEL)
        header = struct.pack(">IIBBBBB", self.size[1], self.size[0], 8, 0 if self.bands == 1 else 2, 0, 0, 0)
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", header)
        self._chunk(b"tEXt", KEY.encode() + b"\0" + self.key.encode())

    def _write(self, rows: np.ndarray) -> None:
        lines = np.zeros((len(rows), 1 + rows[0].size), np.uint8)  # each row begins with its filter: none
        lines[:, 1:] = rows.reshape(len(rows), -1)
        if data := self._zlib.compress(lines):
            self._chunk(b"IDAT", data)

    def _close(self) -> None:
        if not self._file.closed:
            self._chunk(b"IDAT", self._zlib.flush())
            self._chunk(b"IEND", b"")
            self._file.close()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


class GeoTiffWriter(MapWriter):
    """A tiled uint8 GeoTIFF with deflate compression and the no-data value 255.

    Args:
        place: coordinate reference system and transform, control points or RPCs.
        colours: [n <= 256, 3] uint8, the colour table. None: no colour table.
        names: names of the values from 0 on, written beside the file as GDAL's category names.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        key: str,
        place: Georeference,
        colours: np.ndarray | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.place, self.colours, self.names = place, colours, names
        super().__init__(path, size, key)

    def _open(self) -> None:
        import rasterio
        from rasterio.control import GroundControlPoint
        from rasterio.rpc import RPC
        from rasterio.transform import Affine

        points = [GroundControlPoint(*point) for point in self.place.control_points]
        where: dict[str, Any] = {"gcps": points} if points else {}
        if self.place.has_transform:
            where["transform"] = Affine(*self.place.transform)
        if self.place.rpcs:
            where["rpcs"] = RPC.from_gdal(dict(self.place.rpcs))
        self._env = rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES)
        self._row, self._waiting = 0, np.empty((0, self.size[1]), np.uint8)
        with self._env, raster.utf8_path(self.scratch.parent) as folder:
            self._dataset: Any = rasterio.open(
                f"{folder}/{self.scratch.name}", "w", driver="GTiff", height=self.size[0], width=self.size[1], count=1,
                dtype="uint8", crs=self.place.crs or None, nodata=IGNORE, tiled=True, blockxsize=BLOCK,
                blockysize=BLOCK, compress="deflate", zlevel=LEVEL, bigtiff="if_safer", **where,
            )  # fmt: skip
            self._dataset.update_tags(**{KEY: self.key})
            if self.colours is not None:
                table = {value: (*map(int, colour), 255) for value, colour in enumerate(self.colours)}
                self._dataset.write_colormap(1, table | {IGNORE: (0, 0, 0, 0)})

    def _write(self, rows: np.ndarray) -> None:
        # Whole rows of tiles, so that no tile is compressed twice.
        self._waiting = np.concatenate([self._waiting, rows]) if len(self._waiting) else rows
        whole = len(self._waiting) // BLOCK * BLOCK
        if whole:
            self._put(self._waiting[:whole])
            self._waiting = self._waiting[whole:].copy()

    def _put(self, rows: np.ndarray) -> None:
        from rasterio.windows import Window

        with self._env:
            self._dataset.write(rows, 1, window=Window(0, self._row, self.size[1], len(rows)))
        self._row += len(rows)

    def _close(self) -> None:
        if self._dataset.closed:
            return
        if len(self._waiting):
            self._put(self._waiting)
        with self._env:
            self._dataset.close()
        if not is_whole(self.scratch):
            raise OSError("not all of it could be written (is the disk full?)")

    def finish(self) -> None:
        """Write the names of the values, and give the file its name."""
        beside = self.path.with_name(f"{self.path.name}{BESIDE}")
        with self._named():
            if self.names:
                lines = "".join(f"<Category>{escape(name)}</Category>" for name in self.names)
                band = f'<PAMRasterBand band="1"><CategoryNames>{lines}</CategoryNames></PAMRasterBand>'
                beside.write_text(f"<PAMDataset>{band}</PAMDataset>\n", encoding="utf-8")
            elif os.path.lexists(beside):  # not where its name would be too long
                beside.unlink()
        super().finish()


def is_whole(path: Path) -> bool:
    """Whether a TIFF file has all its tiles. rasterio closes a file without an error even if GDAL
    could not write the last tiles.
    """
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            ends = np.add(page.dataoffsets, page.databytecounts)
            return min(page.databytecounts) > 0 and ends.max() <= file.filehandle.size
    except Exception:  # the library raises many kinds where the header is cut off
        return False


def key_of(path: Path) -> str | None:
    """The key of a file that a writer made. None: there is no such file, or it is damaged."""
    try:
        if path.suffix == ".png":
            with opened(path) as image:
                return image.info.get(KEY) if image.format == "PNG" else None
        if path.is_file() and raster.available():
            with raster.opened(path) as dataset:
                return dataset.tags().get(KEY)
    except Exception:  # no image, or a damaged one: it is made again
        return None
    return None


def counts_of(path: Path) -> np.ndarray:
    """The number of pixels of each value, int64 [256], in a file that a writer made."""
    if path.suffix == ".png":
        with opened(path) as image:
            return np.array(image.histogram(), np.int64)
    import rasterio

    counts = np.zeros(256, np.int64)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES), raster.opened(path) as dataset:
        for _, window in dataset.block_windows(1):
            counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
    return counts
