"""Reading one image or label file with Pillow; every fault is a DataError that names the file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import DataError

IGNORE = 255  # label value of a pixel without ground truth

# Pillow's mode -> the mode it is read in, channels, dtype. Palettes and colour spaces become RGB.
MODES = {
    "1": ("L", 1, np.uint8),
    "L": ("L", 1, np.uint8),
    "LA": ("L", 1, np.uint8),
    "La": ("L", 1, np.uint8),
    "P": ("RGB", 3, np.uint8),
    "PA": ("RGB", 3, np.uint8),
    "RGB": ("RGB", 3, np.uint8),
    "RGBX": ("RGB", 3, np.uint8),
    "CMYK": ("RGB", 3, np.uint8),
    "YCbCr": ("RGB", 3, np.uint8),
    "LAB": ("RGB", 3, np.uint8),
    "HSV": ("RGB", 3, np.uint8),
    "RGBA": ("RGBA", 4, np.uint8),
    "RGBa": ("RGBA", 4, np.uint8),
    "I;16": ("I;16", 1, np.uint16),
    "I;16L": ("I;16", 1, np.uint16),
    "I;16B": ("I;16", 1, np.uint16),
    "I;16N": ("I;16", 1, np.uint16),
    "I": ("I", 1, np.uint16),
    "F": ("F", 1, np.float32),
}
# White of each dtype: what is 1 in the network's scale.
WHITE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}


class Header(NamedTuple):
    """What a file says of itself before its pixels are read."""

    rows: int
    columns: int
    channels: int
    dtype: np.dtype


def _opened(path: Path, what: str) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except Exception as error:  # Pillow's plugins raise what they like on a damaged header
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"{what} {path} is empty (zero bytes)") from None
        raise DataError(f"{what} {path} cannot be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__


def read_header(path: Path) -> Header:
    with _opened(path, "image") as image:
        if image.mode not in MODES:
            raise DataError(f"image {path} has Pillow mode {image.mode}, which is not accepted")
        _, channels, dtype = MODES[image.mode]
        return Header(image.height, image.width, channels, np.dtype(dtype))


def read_image(path: Path) -> np.ndarray:
    """The pixels as stored (no EXIF rotation): [channels, rows, columns] uint8, uint16, or float32 in [0, 1]."""
    with _opened(path, "image") as image:
        if image.mode not in MODES:
            raise DataError(f"image {path} has Pillow mode {image.mode}, which is not accepted")
        mode, channels, dtype = MODES[image.mode]
        try:
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        except Exception as error:  # a truncated or damaged body; plugins differ in what they raise
            raise DataError(f"image {path} cannot be read: {first_line(error)}") from error
    if mode == "I" and not (pixels.min() >= 0 and pixels.max() <= 65535):
        raise DataError(f"image {path} has values from {pixels.min()} to {pixels.max()}; 0 to 65535 are accepted")
    if mode == "F" and not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN too
        raise DataError(f"image {path} has values outside [0, 1] or NaN; floating-point images must be in [0, 1]")
    pixels = np.ascontiguousarray(pixels.astype(dtype, copy=False))
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_label(path: Path) -> np.ndarray:
    """The label map as stored, [rows, columns] uint8; of a palette PNG the indices."""
    with _opened(path, "label") as image:
        if image.mode not in ("L", "P", "1"):
            raise DataError(f"label {path} has Pillow mode {image.mode}; 8-bit single-channel PNG is accepted")
        try:
            return np.asarray(image).astype(np.uint8)
        except Exception as error:
            raise DataError(f"label {path} cannot be read: {first_line(error)}") from error


def label_size(path: Path) -> tuple[int, int]:
    with _opened(path, "label") as image:
        return image.height, image.width


def to_dtype(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Widen pixels to a set's dtype, white staying white."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.float32:
        return pixels.astype(np.float32) / WHITE[pixels.dtype]
    return pixels.astype(np.uint16) * 257  # 8 to 16 bits


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Repeat a grey image over the channels of a colour set."""
    return pixels if len(pixels) == channels else np.repeat(pixels, channels, axis=0)
