"""JPEG XL, and AVIF that Pillow cannot read or would narrow, by imagecodecs."""

from pathlib import Path

import imagecodecs
import numpy as np

from ..errors import DataError
from .pillow import channels_first
from .reader import Description, WholeReader, accepted_dtype

JPEG_XL_MAGIC = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
AVIF_BRANDS = (b"ftypavif", b"ftypavis")  # from byte 4 on
ENDINGS = {"JPEGXL": ".jxl", "AVIF": ".avif"}


def codec_of(head: bytes) -> str | None:
    """The codec of imagecodecs for a file that begins with these bytes, or None."""
    if head.startswith(JPEG_XL_MAGIC):
        return "JPEGXL"
    return "AVIF" if head[4:12] in AVIF_BRANDS else None


def available(codec: str) -> bool:
    return bool(getattr(getattr(imagecodecs, codec, None), "available", False))


def endings() -> set[str]:
    """Endings of the formats whose codec is installed."""
    return {ending for codec, ending in ENDINGS.items() if available(codec)}


class CodecReader(WholeReader):
    """A file with one image. It is decoded when it is opened, since imagecodecs reads no header."""

    pages = 1

    def __init__(self, path: Path, codec: str) -> None:
        if not available(codec):
            raise DataError(f"this installation of imagecodecs has no codec {codec}; the wheels of PyPI have it")
        self.path, self._decode = path, getattr(imagecodecs, f"{codec.lower()}_decode")
        pixels = self._pixels()
        bands, height, width = pixels.shape
        dtype = accepted_dtype(pixels.dtype)
        self._described = Description(height, width, bands, dtype, alpha=bands in (2, 4))
        self._opened = [pixels]  # for the first decoding

    def describe(self, page: int) -> Description:
        return self._described

    def decode(self, page: int, raw: bool) -> np.ndarray:
        try:
            pixels = self._opened.pop()
        except IndexError:
            pixels = self._pixels()
        return pixels.astype(self._described.dtype, copy=False)

    def _pixels(self) -> np.ndarray:
        decoded = self._decode(self.path.read_bytes())
        if decoded.ndim not in (2, 3):
            raise DataError("an image of several frames is not accepted")
        return channels_first(decoded)
