"""`Scaling`: maps stored values to the network's [0, 1], by limits of the training set."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

if TYPE_CHECKING:
    from .base import ImageSet

QUANTILES = (0.005, 0.995)
SAMPLED_IMAGES = 256  # largest number of images of the sample
SAMPLED_PIXELS = 2**19  # largest number of pixels of the sample
PART_SIDE = 128  # pixels, side of the parts that are read of a large image


@dataclass(frozen=True)
class Scaling:
    """(value - low) / (high - low) per channel, clipped to [0, 1].

    Attributes:
        low, high: limits of each channel. 8-bit values have the limits 0 and 255.
        dtype: dtype of the stored values of the training set.
        fill: stored value of each channel that replaces pixels without data. None: they keep the
            value in the file.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str
    fill: tuple[float, ...] | None = None

    def to_float(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Stored values [..., c, H, W] as float32 in [0, 1], on their device. uint8 values give
        exactly value / 255.

        numpy converts arrays: a reading thread that used torch would compete with the network for
        its threads.

        Raises:
            ValueError: the number of channels is wrong.
        """
        if pixels.shape[-3] != len(self.low):
            raise ValueError(f"pixels have {pixels.shape[-3]} channels, the scaling has {len(self.low)}")
        if isinstance(pixels, Tensor):
            return self._tensor_to_float(pixels)
        if pixels.dtype == np.uint8 and self.dtype == "uint8":
            return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
        # float32 holds every value of 16 bits, but not of 32.
        work = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
        low, high = (np.array(limit, work)[:, None, None] for limit in (self.low, self.high))
        scaled = (pixels.astype(work) - low) / (high - low)
        return torch.from_numpy(scaled.clip(0, 1).astype(np.float32, copy=False))

    def _tensor_to_float(self, pixels: Tensor) -> Tensor:
        if pixels.dtype == torch.uint8 and self.dtype == "uint8":
            return pixels.float() / 255
        work = torch.float32 if pixels.element_size() <= 2 or pixels.dtype == torch.float32 else torch.float64
        low, high = _limits(self.low, work, pixels.device), _limits(self.high, work, pixels.device)
        return ((pixels.to(work) - low) / (high - low)).clamp(0, 1).float()

    def with_fill(self, mean: Sequence[float]) -> "Scaling":
        """The same limits, with the `mean` of each channel in [0, 1] as `fill`."""
        found = (low + m * (high - low) for low, high, m in zip(self.low, self.high, mean, strict=True))
        return replace(self, fill=tuple(found))

    def filled(self, pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
        """Stored values [c, rows, columns] with `fill` where `valid`, bool [rows, columns], is
        False.

        The value in the file is often extreme. It would make an edge, and change the global features
        of the image.
        """
        if valid is None or self.fill is None or valid.all():
            return pixels
        fill = np.array(self.fill)[:, None, None]
        return np.where(valid, pixels, (fill if pixels.dtype.kind == "f" else fill.round()).astype(pixels.dtype))

    def accepts(self, dtype: np.dtype) -> bool:
        """Whether values of `dtype` can be on the same scale: both are 8-bit, or neither is."""
        return (np.dtype(dtype) == np.uint8) == (self.dtype == "uint8")

    def state(self) -> dict:
        """Lists and text, for a checkpoint or JSON."""
        fill = None if self.fill is None else list(self.fill)
        return {"low": list(self.low), "high": list(self.high), "dtype": self.dtype, "fill": fill}

    @classmethod
    def from_state(cls, state: dict) -> "Scaling":
        fill = state.get("fill")
        return cls(tuple(state["low"]), tuple(state["high"]), state["dtype"], None if fill is None else tuple(fill))


@functools.lru_cache(maxsize=8)
def _limits(limits: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The limits [c, 1, 1] on the device. Only the first call waits for the device."""
    return torch.tensor(limits, dtype=dtype, device=device)[:, None, None]


def eight_bit(channels: int) -> Scaling:
    return Scaling((0.0,) * channels, (255.0,) * channels, "uint8")


def estimate(images: "ImageSet") -> Scaling:
    """The scaling of a set. Limits are 0 and 255 for 8-bit values, else the QUANTILES of each
    channel over a sample of pixels with data.

    Raises:
        DataError: no sampled pixel has data.
    """
    if images.dtype == np.uint8:
        return eight_bit(images.channels)
    chosen = images.evenly_spread(SAMPLED_IMAGES)
    samples = [_sample(images, index, SAMPLED_PIXELS // len(chosen)) for index in chosen]
    values = np.concatenate(samples, axis=1)
    if not values.shape[1]:
        raise DataError(f"{images.name}: none of the pixels of {len(chosen)} images has data")
    low, high = np.quantile(values, QUANTILES, axis=1)
    flat = high <= low
    low[flat], high[flat] = values[flat].min(axis=1), values[flat].max(axis=1)
    high[high <= low] = low[high <= low] + 1  # a constant channel
    return Scaling(tuple(low.tolist()), tuple(high.tolist()), str(images.dtype))


def _sample(images: "ImageSet", index: int, number: int) -> np.ndarray:
    """About `number` pixels with data of an image, [c, n], on a regular grid."""
    rows, columns = images.sizes[index]
    if images.windowed and rows * columns > 4 * max(number, PART_SIDE**2):
        side = max(1, round((number / PART_SIDE**2) ** 0.5))  # parts in each direction
        height, width = min(PART_SIDE, rows), min(PART_SIDE, columns)
        corners = [(int(r), int(c)) for r in np.linspace(0, rows - height, side + 2)[1:-1]
                   for c in np.linspace(0, columns - width, side + 2)[1:-1]]  # fmt: skip
        parts = [images.read_window(index, r, c, height, width) for r, c in corners]
    else:
        step = max(1, int((rows * columns / number) ** 0.5))
        pixels, valid = images.read(index)
        parts = [(pixels[:, ::step, ::step], None if valid is None else valid[::step, ::step])]
    return np.concatenate([p.reshape(len(p), -1) if ok is None else p[:, ok] for p, ok in parts], axis=1)
