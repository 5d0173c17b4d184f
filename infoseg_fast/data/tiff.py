"""TIFF files by tifffile: classic and BigTIFF, strips and tiles, any of its compressions.

Blocks are read with positioned reads, so that threads and forked processes can share an open file.
"""

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import tifffile

from ..errors import DataError
from .reader import MAX_BYTES, PLACE_TAGS, Description, Georeference, Reader, accepted_dtype, fits, with_palette

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # damaged files raise a DataError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CACHED_BYTES = 64 * 2**20  # size of the cache of decoded blocks of all files
JPEG = {6, 7, 33007, 34892}  # compressions whose YCbCr colours are decoded to RGB
JPEG_BASELINE, LERC = 7, 34887
LIMITED = {5, 8, 32773, 32946}  # LZW, deflate and PackBits, which compress by less than LARGEST_RATIO
LARGEST_RATIO, MIN_BLOCK_BYTES = 4000, 2**16
MIN_IS_WHITE, MIN_IS_BLACK, PALETTE, CMYK, YCBCR = 0, 1, 3, 5, 6
REFUSED = {8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL", 32845: "LogLuv"}
GDAL_NODATA = 42113
REDUCED, MASK = 1, 4  # bits of NewSubfileType
SEPARATE = 2  # planar configuration


class BlockCache:
    """A cache of decoded blocks, up to CACHED_BYTES. The least recently used blocks leave it first.
    The newest block always stays.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, key: tuple, decode: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = decode()
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._bytes += block.nbytes
            while self._bytes > CACHED_BYTES and len(self._blocks) > 1:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block


_blocks = BlockCache()
os.register_at_fork(after_in_child=_blocks.__init__)  # the lock may be held by a thread that the child lacks


def opened(path: Path) -> tifffile.TiffFile:
    """The TIFF file. tifffile gets it opened, since it would resolve links, and the link to a member of
    a shard leads to no path.
    """
    return tifffile.TiffFile(open(path, "rb"))  # closed with the reader


class TiffReader(Reader):
    """A TIFF file. Overviews and masks are no pages. Pages that ImageJ or OME metadata declare as
    channels are bands.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = opened(path)
        self._size = self._file.filehandle.size
        self._key = (os.fspath(path), os.stat(path).st_mtime_ns)
        self._pages: list[tifffile.TiffPage] = []
        self._masks: dict[int, tifffile.TiffPage] = {}
        offsets: set[int] = set()
        for page in self._file.pages:
            if page.offset in offsets:
                raise DataError("its pages form a circle (damaged)")
            offsets.add(page.offset)
            if page.subfiletype & MASK:
                if not page.subfiletype & REDUCED and self._pages:
                    self._masks[len(self._pages) - 1] = page
            elif not page.subfiletype & REDUCED:
                self._pages.append(page)
        if not self._pages:
            raise DataError("no page at full resolution")
        self.is_jpeg = self._pages[0].compression in JPEG
        self._contiguous = self._images_behind_one_header()
        self._stacked = self._declares_channels()
        self.pages = 1 if self._stacked else max(len(self._pages), self._contiguous)
        self._sidecar_path = path.with_name(f"{path.name}.msk")
        self._sidecar = opened(self._sidecar_path) if os.path.isfile(self._sidecar_path) else None

    def _images_behind_one_header(self) -> int:
        """Number of images. ImageJ (for a stack above 4 GB), tifffile (truncate=True) and MetaMorph
        write one page, followed by the data of the others.
        """
        if len(self._pages) > 1 or not self._pages[0].is_contiguous:
            return 1
        if self._file.is_imagej:
            images = int((self._file.imagej_metadata or {}).get("images", 1))
        elif self._file.is_shaped or self._file.is_stk:
            images = self._file.series[0].size // max(self._pages[0].size, 1)
        else:
            images = 1
        return max(images, 1)

    def _declares_channels(self) -> bool:
        """Whether ImageJ or OME metadata declare the pages as the channels of one image."""
        number = max(len(self._pages), self._contiguous)
        if number == 1 or len({(page.shaped, page.dtype) for page in self._pages}) > 1:
            return False
        if self._pages[0].photometric == PALETTE:
            return False
        if self._file.is_imagej:
            return int((self._file.imagej_metadata or {}).get("channels", 1)) == number
        if self._file.is_ome:
            series = self._file.series
            return len(series) == 1 and series[0].axes == "CYX" and series[0].shape[0] == number
        return False

    def _page(self, page: int) -> tuple[tifffile.TiffPage, int]:
        """The header of a page, and the number of pages whose data lie between this header and the
        data of the page.
        """
        return (self._pages[0], page) if self._contiguous > 1 else (self._pages[page], 0)

    def describe(self, page: int) -> Description:
        header = self._page(page)[0]
        if header.photometric in REFUSED:
            raise DataError(f"colours of {REFUSED[header.photometric]} are not accepted; convert them to RGB")
        if 0 in header.shaped or header.shaped[1] != 1 or header.dtype is None:
            bits = f"{header.bitspersample}-bit samples of format {header.sampleformat}"
            raise DataError(f"a page of shape {header.shape} with {bits} is not accepted")
        if header.bitspersample == 24 and header.dtype.kind in "iu":  # imagecodecs' versions and GDAL disagree
            raise DataError("samples of 24 bits are not accepted; convert them to 32 bits")
        separate, _, height, width, samples = header.shaped
        blocks = separate * int(np.prod(grid_of(header)[2:]))
        if len(header.dataoffsets) < blocks and not header.is_contiguous:
            raise DataError(f"{len(header.dataoffsets)} of {blocks} blocks (damaged)")
        bands, dtype, note = separate * samples, accepted_dtype(header.dtype), ""
        if header.photometric == PALETTE:
            colours = palette_of(header)
            if bands > 1 and colours.dtype != dtype:
                raise DataError(f"a palette of {colours.dtype} beside samples of {dtype} is not accepted")
            bands, dtype = len(colours) + bands - 1, colours.dtype
        elif header.photometric == CMYK and bands == 4:
            if dtype != np.uint8:
                raise DataError(f"CMYK colours of {dtype} are not accepted; convert them to RGB")
            bands, note = 3, "CMYK colours are converted to RGB"
        elif self._stacked:
            bands *= max(len(self._pages), self._contiguous)
        extra = tuple(header.extrasamples or ())
        nodata, converts = nodata_of(header), is_converted(header)
        return Description(
            height,
            width,
            bands,
            dtype,
            alpha=bool(extra) and extra[-1] in (1, 2) and bands > 1 and not self._stacked,
            nodata=None if converts else nodata,
            masked=page in self._masks or self._sidecar is not None or (converts and nodata is not None),
            windowed=True,
            georeferenced=not PLACE_TAGS.isdisjoint(header.tags.keys()),
            note=note,
        )

    def read(self, page: int, rows: slice, columns: slice, raw: bool = False) -> np.ndarray:
        pages = range(max(len(self._pages), self._contiguous)) if self._stacked else (page,)
        parts = [self._samples(*self._page(number), rows, columns) for number in pages]
        header = self._page(page)[0]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return pixels if raw else converted(header, pixels)

    def mask(self, page: int, rows: slice, columns: slice) -> np.ndarray | None:
        header = self._masks.get(page)
        if header is None and page == 0 and self._sidecar is not None:
            size = self._pages[0].shaped[2:4]
            header = next((found for found in self._sidecar.pages if found.shaped[2:4] == size), None)
        mask = None if header is None else (self._samples(header, 0, rows, columns) != 0).any(axis=0)
        header, skipped = self._page(page)
        nodata = nodata_of(header)
        if is_converted(header) and nodata is not None:  # a stored value, which the pixels no longer show
            stored = self._samples(header, skipped, rows, columns)
            stored = stored.astype(accepted_dtype(stored.dtype), copy=False)
            if fits(nodata, stored.dtype):
                present = (stored != stored.dtype.type(nodata)).any(axis=0)
                mask = present if mask is None else mask & present
        return mask

    def georeference(self, page: int) -> Georeference | None:
        from . import raster

        header, first = self._page(page)[0], self._file.pages.first
        if header.offset != first.offset:
            own = raster.georeference(self.path, header.offset)
            if own is not None or not PLACE_TAGS.isdisjoint(first.tags.keys()):
                return own
        # GDAL reads the .aux.xml file only here.
        return raster.georeference(self.path)

    def companions(self) -> list[Path]:
        return [self._sidecar_path] if self._sidecar is not None else []

    def _samples(self, header: tifffile.TiffPage, skipped: int, rows: slice, columns: slice) -> np.ndarray:
        """Stored samples [bands, rows, columns] in native byte order."""
        separate, _, height, width, samples = header.shaped
        dtype = np.dtype(header.parent.byteorder + header.dtype.char)
        # The first block of a sparse file may never have been written.
        if header.is_contiguous and header.is_final and header.dataoffsets[0] and header.databytecounts[0]:
            size = separate * height * width * samples * dtype.itemsize
            if header.dataoffsets[0] + (skipped + 1) * size > header.parent.filehandle.size:
                raise DataError("the file ends before its last pixel (truncated)")
            mapped = np.memmap(
                header.parent.filehandle.path,
                dtype,
                "r",
                header.dataoffsets[0] + skipped * size,
                (separate, height, width, samples),
            ).view(np.ndarray)
            bands = mapped[:, rows, columns].transpose(0, 3, 1, 2).astype(dtype.newbyteorder("="), order="C")
        else:
            bands = self._blocks_of(header, rows, columns)
        return bands.reshape(separate * samples, *bands.shape[2:])

    def _blocks_of(self, header: tifffile.TiffPage, rows: slice, columns: slice) -> np.ndarray:
        """Samples [separate, samples, rows, columns] from the strips or tiles that a part touches."""
        separate, _, height, width, samples = header.shaped
        tall, wide, down, across = grid_of(header)
        nodata = nodata_of(header) or 0
        fill = nodata if fits(nodata, header.dtype) else 0
        shape = separate, samples, rows.stop - rows.start, columns.stop - columns.start
        # Zeros take no memory until a block is copied to them.
        out = np.full(shape, fill, header.dtype) if fill else np.zeros(shape, header.dtype)
        touched = (range(span.start // n, -(-span.stop // n)) for span, n in ((rows, tall), (columns, wide)))
        for plane, (r, c) in product(range(separate), product(*touched)):
            block = self._block(header, (plane * down + r) * across + c)
            if block is not None:  # else it was never written: a sparse file
                (to_rows, from_rows), (to_columns, from_columns) = (
                    overlap(rows, r * tall, tall, height), overlap(columns, c * wide, wide, width)
                )  # fmt: skip
                out[plane, :, to_rows, to_columns] = block[from_rows, from_columns].transpose(2, 0, 1)
        return out

    def _block(self, header: tifffile.TiffPage, index: int) -> np.ndarray | None:
        """A decoded strip or tile [rows, columns, samples]. None: it has no data."""
        offset, size = header.dataoffsets[index], header.databytecounts[index]
        if offset == 0 or size == 0:
            return None
        if offset + size > header.parent.filehandle.size:
            raise DataError("the file ends before its last block (truncated)")

        tall, wide, down, _ = grid_of(header)
        decoded = tall * wide * header.shaped[4] * header.dtype.itemsize
        if decoded > MAX_BYTES:
            raise DataError(f"blocks of {decoded / 2**30:.3g} GiB; at most {MAX_BYTES / 2**30:.3g} are accepted")
        if header.compression in LIMITED and decoded > LARGEST_RATIO * size + MIN_BLOCK_BYTES:
            raise DataError(f"{size} compressed bytes cannot hold a block of {decoded} (damaged)")

        def decode() -> np.ndarray:
            data = os.pread(header.parent.filehandle._fh.fileno(), size, offset)
            if header.compression == LERC:
                return lerc_block(data, header.shaped[4])
            if header.compression == JPEG_BASELINE and header.planarconfig == SEPARATE:  # each plane is grey
                return imagecodecs.jpeg8_decode(data, tables=header.jpegtables)[..., None]
            tables = {"jpegtables": header.jpegtables, "jpegheader": header.jpegheader}
            try:
                found = header.decode(data, index, **tables)[0]
            except Exception:
                if header.is_tiled or (index + 1) % down or header.shaped[2] % tall == 0:
                    raise
                # Some programs store the last strip of a plane with as many rows as the others.
                with contextlib.suppress(Exception):
                    return header.decode(data, 0, **tables)[0][0]
                raise
            if found is None:
                raise DataError(f"block {index} cannot be decoded")
            return found[0]

        return _blocks.get((*self._key, header.offset, header.parent.filehandle.name, index), decode)


def grid_of(header: tifffile.TiffPage) -> tuple[int, int, int, int]:
    """(rows, columns) of a block, and the number of blocks of a plane down and across."""
    _, _, height, width, _ = header.shaped
    tall = header.tilelength if header.is_tiled else min(header.rowsperstrip, height)
    wide = header.tilewidth if header.is_tiled else width
    return tall, wide, -(-height // tall), -(-width // wide)


def lerc_block(data: bytes, samples: int) -> np.ndarray:
    """A block of LERC [rows, columns, samples]. LERC's mask stands for NaN, or for an alpha channel of
    0 and 255, which then is no sample of the block.
    """
    pixels, valid = imagecodecs.lerc_decode(data, masks=True)
    if valid is None:
        valid = np.ones(pixels.shape[:2], bool)
    if valid.ndim == 3:  # a mask for each sample: then the samples come first
        pixels, valid = pixels.transpose(1, 2, 0), valid.transpose(1, 2, 0)
    pixels, valid = (part.reshape(*part.shape[:2], -1) for part in (pixels, valid))
    if pixels.dtype.kind == "f":
        return np.where(valid, pixels, pixels.dtype.type(np.nan))
    if pixels.shape[2] == samples - 1:
        pixels = np.concatenate([pixels, np.where(valid, 255, 0).astype(pixels.dtype)], axis=2)
    return pixels


def overlap(span: slice, start: int, length: int, end: int) -> tuple[slice, slice]:
    """The overlap of a span of pixels and a block of `length` pixels from `start`, cut off at `end`:
    in the span, and in the block.
    """
    first, stop = max(span.start, start), min(span.stop, start + length, end)
    return slice(first - span.start, stop - span.start), slice(first - start, stop - start)


def palette_of(header: tifffile.TiffPage) -> np.ndarray:
    """The colours [3, entries]: uint8, or uint16 if they need more bits."""
    colours = np.asarray(header.colormap)
    for step in (257, 256):
        if (colours % step == 0).all():
            return (colours >> 8).astype(np.uint8)
    return colours.astype(np.uint16)


def is_converted(header: tifffile.TiffPage) -> bool:
    """Whether `converted` gives other values than the stored ones."""
    separate, _, _, _, samples = header.shaped
    if header.photometric == PALETTE:
        return True
    if header.photometric == CMYK:
        return separate * samples == 4
    scaled = header.photometric == MIN_IS_BLACK and header.bitspersample in (1, 2, 4)
    return accepted_dtype(header.dtype).kind == "u" and (header.photometric == MIN_IS_WHITE or scaled)


def converted(header: tifffile.TiffPage, pixels: np.ndarray) -> np.ndarray:
    """The values of stored samples [bands, rows, columns]: palettes become colours, and white is the
    largest value.
    """
    bits, photometric = header.bitspersample, header.photometric
    if photometric == PALETTE:
        return with_palette(palette_of(header), pixels)
    if photometric == CMYK and len(pixels) == 4:
        image = PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), "CMYK").convert("RGB")
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    pixels = pixels.astype(accepted_dtype(pixels.dtype), copy=False)
    if pixels.dtype.kind != "u":
        return pixels
    white = 2**bits - 1
    if photometric == MIN_IS_WHITE:
        grey = len(pixels) - len(header.extrasamples or ())  # alpha and the like stay
        pixels = np.concatenate([(white - pixels[:grey]).astype(pixels.dtype), pixels[grey:]])
    if photometric in (MIN_IS_WHITE, MIN_IS_BLACK) and bits in (1, 2, 4):
        pixels = pixels * np.uint8(255 // white)
    return pixels


def nodata_of(header: tifffile.TiffPage) -> float | None:
    """The no-data value among the stored values of a page."""
    tag = header.tags.get(GDAL_NODATA)
    return None if tag is None else number_in(tag.value)


def number_in(text: object) -> float | None:
    try:
        return float(str(text).strip("\0 \n"))
    except ValueError:
        return None
