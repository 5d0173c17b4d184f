"""Formats that Pillow reads, and those that Pillow would narrow and imagecodecs reads: 16-bit PNG
and JPEG 2000.
"""

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageFile

from ..errors import DataError
from .reader import PLACE_TAGS, Description, WholeReader

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG2000_MAGIC = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
# Pillow's mode -> mode in which it is read, bands, dtype. Palettes and colour spaces become RGB.
MODES = {
    "1": ("L", 1, np.uint8),
    "L": ("L", 1, np.uint8),
    "LA": ("LA", 2, np.uint8),
    "P": ("RGB", 3, np.uint8),
    "PA": ("RGBA", 4, np.uint8),
    "RGB": ("RGB", 3, np.uint8),
    "RGBA": ("RGBA", 4, np.uint8),
    "RGBX": ("RGB", 3, np.uint8),
    "CMYK": ("RGB", 3, np.uint8),
    "YCbCr": ("RGB", 3, np.uint8),
    "I;16": ("I;16", 1, np.uint16),
    "I;16L": ("I;16", 1, np.uint16),
    "I;16B": ("I;16", 1, np.uint16),
    "I;16N": ("I;16", 1, np.uint16),
    "I": ("I", 1, np.int32),
    "F": ("F", 1, np.float32),
}
WITH_ALPHA = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}  # modes if the transparency is a colour
PNG_BANDS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # bands by the colour type of a PNG
ORIENTATION = 274  # tag of TIFF
LARGE_BYTES = 64 * 2**20  # decoded size from which a PNG is large
_limit_lock = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged files, which raise a DataError


class NotForPillowError(Exception):
    """Pillow does not know the file, or would narrow its values."""


@contextmanager
def no_pixel_limit() -> Iterator[None]:
    """A context without Pillow's limit on the number of pixels. `ReadOptions.max_bytes` limits it
    instead.
    """
    with _limit_lock:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def opened(file: Path | BinaryIO) -> PIL.ImageFile.ImageFile:
    """`PIL.Image.open` without its limit on the number of pixels."""
    with no_pixel_limit():
        return PIL.Image.open(file)


class PillowReader(WholeReader):
    """An image that Pillow decodes, without EXIF rotation.

    Attributes:
        plain: whether the file is large, and its stored values are the pixels, row by row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            image = opened(path)
        except PIL.UnidentifiedImageError as error:
            raise NotForPillowError("not in a known image format") from error
        narrowed = narrowed_by_pillow(image)
        if isinstance(image, PIL.ImageFile.StubImageFile) or narrowed:
            raise NotForPillowError(narrowed or f"{image.format} files are not read by Pillow")
        if image.mode not in MODES:
            raise DataError(f"images of Pillow's mode {image.mode} are not accepted")
        mode, bands, dtype = MODES[image.mode]
        if getattr(image, "tag_v2", {}).get(ORIENTATION, 1) != 1:  # which Pillow applies to TIFF
            raise DataError("YCbCr colours in another orientation than 1 are not accepted; convert them to RGB")
        if "transparency" in image.info and image.mode in WITH_ALPHA:
            mode = WITH_ALPHA[image.mode]
            bands = len(mode)
        self._mode, self._transparent = mode, "transparency" in image.info
        self.pages, self.is_jpeg = getattr(image, "n_frames", 1), image.format in ("JPEG", "MPO")
        placed = not PLACE_TAGS.isdisjoint(getattr(image, "tag_v2", {}))
        note = "CMYK colours are converted to RGB" if image.mode == "CMYK" else ""
        if image.format == "MPO" and self.pages > 1:  # a camera's JPEG with its previews
            self.pages, note = 1, "further frames of a camera's MPO file are not read"
        self._described = Description(
            image.height, image.width, bands, np.dtype(dtype), alpha=mode in ("LA", "RGBA"), georeferenced=placed,
            note=note,
        )  # fmt: skip
        self._largest = largest_value(image)
        large = image.height * image.width * bands > LARGE_BYTES
        stored = image.mode == mode and self._largest == 255
        self.plain = large and stored and not image.info.get("interlace")
        self._opened = [image]  # for the first decoding

    def describe(self, page: int) -> Description:
        return self._described

    def decode(self, page: int, raw: bool) -> np.ndarray:
        try:
            image = self._opened.pop()
        except IndexError:
            image = opened(self.path)
        with image:
            if page:
                image.seek(page)
            keep = raw and image.mode in ("1", "P")
            if self._largest < 255 and "transparency" in image.info:  # Pillow scales the pixels alone
                image.info["transparency"] = image.info["transparency"] * 255 // self._largest
            pixels = np.asarray(image if keep or image.mode == self._mode else image.convert(self._mode))
        pixels = pixels.astype(np.uint8) if keep else pixels
        if raw and self._largest < 255:
            pixels = np.rint(pixels * (self._largest / 255)).astype(np.uint8)
        return channels_first(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


class PngReader(PillowReader):
    """A 16-bit PNG. Pillow would narrow one in colour to 8 bits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open(path, "rb") as file:
            bands = PNG_BANDS[file.read(26)[25]]
        described = self._described
        # A transparent colour becomes an alpha band.
        bands += self._transparent and bands in (1, 3)
        self._described = described._replace(bands=bands, dtype=np.dtype(np.uint16), alpha=bands in (2, 4))

    def decode(self, page: int, raw: bool) -> np.ndarray:
        pixels = channels_first(imagecodecs.png_decode(self.path.read_bytes()))
        if len(pixels) == self._described.bands - 1:  # the decoder ignores the transparent colour
            raise DataError("a 16-bit PNG with a transparent colour is not accepted; give it an alpha channel")
        return pixels


class Jpeg2000Reader(WholeReader):
    """A JPEG 2000 file, for installations without rasterio."""

    pages = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            data = file.read(2**20)
        at = data.find(JPEG2000_MAGIC[1])
        if at < 0:
            raise DataError("no codestream in the first megabyte (damaged)")
        right, bottom, left, top, *_, bands = struct.unpack_from(">8IH", data, at + 8)
        components = np.frombuffer(data, np.uint8, 3 * bands, at + 42).reshape(bands, 3)
        precision = int(components[:, 0].max()) % 128 + 1
        signed = bool(components[0, 0] & 128)
        if len(set(components[:, 0].tolist())) > 1 or (components[:, 1:] != 1).any() or precision > 16:
            raise DataError("components of several depths, of several sizes or of more than 16 bits are not accepted")
        dtype = (np.int16 if signed else np.uint8) if precision <= 8 else (np.int16 if signed else np.uint16)
        self._described = Description(bottom - top, right - left, bands, np.dtype(dtype))

    def describe(self, page: int) -> Description:
        return self._described

    def decode(self, page: int, raw: bool) -> np.ndarray:
        pixels = imagecodecs.jpeg2k_decode(self.path.read_bytes())
        return channels_first(pixels.astype(self._described.dtype, copy=False))


def channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def narrowed_by_pillow(image: PIL.ImageFile.ImageFile) -> str:
    """The kind of the file if Pillow's pixels have fewer bits than it. Empty: they have all bits."""
    if image.format == "PPM":
        with open(image.filename, "rb") as file:
            head = file.read(512)
        fields = [word for line in head.split(b"\n") for word in line.split(b"#")[0].split()]
        if fields[0] in (b"P2", b"P3", b"P5", b"P6") and len(fields) > 3 and int(fields[3]) > 255:
            return f"a {fields[0].decode()} file of {int(fields[3]).bit_length()} bits"
    if image.format == "FITS":
        with open(image.filename, "rb") as file:
            head = file.read(2**16).partition(b"END".ljust(80))[0]
        cards = {
            head[at : at + 8].strip(): head[at + 10 : at + 80].split(b"/")[0].strip() for at in range(0, len(head), 80)
        }
        plain = cards[b"NAXIS"] == b"2" and cards[b"BITPIX"] == b"8"  # versions disagree on the byte order of others
        if not plain or cards.keys() & {b"BZERO", b"BSCALE"}:
            return "a FITS file of more than 8 bits, with a scale, or not of one plane"
    if image.format == "SGI":
        with open(image.filename, "rb") as file:
            if file.read(4)[3] != 1:
                return "an SGI file of 16 bits"
    if image.format == "AVIF":
        with open(image.filename, "rb") as file:
            head = file.read(2**16)
        at = head.find(b"av1C")
        if at >= 0 and head[at + 6] & 0x40:  # high_bitdepth
            return "an AVIF file of more than 8 bits"
    return "a texture of floating point" if image.format == "DDS" and b"BC6H" in repr(image.tile).encode() else ""


def largest_value(image: PIL.ImageFile.ImageFile) -> int:
    """The stored value that Pillow scales to 255: less than 255 in a grey PNG of 2 or 4 bits, and in
    a PPM file with a smaller largest value.
    """
    for tile in image.tile:
        if str(tile.args).startswith("L;") and tile.args[2:].isdigit():
            return 2 ** int(tile.args[2:]) - 1
        if tile.codec_name in ("ppm", "ppm_plain") and image.mode in ("L", "RGB"):
            return min(int(tile.args[1]), 255)
    return 255


def endings() -> set[str]:
    """Endings of the formats that Pillow reads, in lower case."""
    return {ending for ending, name in PIL.Image.registered_extensions().items() if name in PIL.Image.OPEN}


def png_bits(head: bytes) -> int:
    """Bits of a sample, from the header of a PNG file."""
    return head[24] if len(head) > 24 else 8
