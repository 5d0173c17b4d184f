"""The geometry of a label map that is made in tiles: tiles and their windows, the parts of the
image that are read, and the weights of resizing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data.base import to_channels
from .data.scaling import Scaling
from .encoding import Area

READ_BYTES = 48 * 2**20  # stored values that are read at a time


class Tile(NamedTuple):
    """Rows and columns of the padded image, and the window around them."""

    rows: range
    columns: range
    window: Area


@dataclass(frozen=True)
class Plan:
    """The order in which an image is read and labelled.

    Attributes:
        native: (rows, columns) of the image as stored.
        inner: (rows, columns) of the image that the network gets.
        padded: (rows, columns) of the inner image with its padding.
        size: (rows, columns) of the label map.
        strips: groups of tiles that are read together.
        passes: how often the image is read: once if the windows of the first pass are kept for the
            second, else twice.
    """

    native: tuple[int, int]
    inner: tuple[int, int]
    padded: tuple[int, int]
    size: tuple[int, int]
    strips: list[list[Tile]]
    passes: int

    def regions(self) -> Iterator[Area]:
        """Rows and columns of the stored image in the order of reading: one region for each strip
        of each pass.
        """
        for _ in range(self.passes):
            for strip in self.strips:
                first, last = self.stored_window(strip[0]), self.stored_window(strip[-1])
                yield range(first[0].start, last[0].stop), range(first[1].start, last[1].stop)

    def inner_window(self, tile: Tile) -> Area:
        """The window of a tile without its padding."""
        rows, columns = (range(w.start, min(w.stop, n)) for w, n in zip(tile.window, self.inner, strict=True))
        return rows, columns

    def stored_window(self, tile: Tile) -> Area:
        """Rows and columns of the stored image that a tile's window and labels depend on."""
        found = []
        for window, n, m in zip(self.inner_window(tile), self.inner, self.native, strict=True):
            reach = 0 if n == m else max(m / n, 1.0) + 1
            first, stop = int(window.start * m / n - reach), int(-(-window.stop * m // n) + reach)
            found.append(range(max(first, 0), min(stop, m)))
        return found[0], found[1]

    def output(self, tile: Tile) -> Area:
        """Rows and columns of the label map whose centres lie in a tile."""
        found = []
        for part, n, padded, m in zip((tile.rows, tile.columns), self.inner, self.padded, self.size, strict=True):
            # The least i with (i + 1/2) n / m >= edge.
            first, stop = (max(-((n - 2 * edge * m) // (2 * n)), 0) for edge in (part.start, part.stop))
            found.append(range(min(first, m), m if part.stop == padded else min(stop, m)))
        return found[0], found[1]


class Band(NamedTuple):
    """A part of an image that is read at once.

    Attributes:
        pixels: float [B, c, rows, columns] in [0, 1], or stored values [c, rows, columns].
        place: rows and columns of the image that the part covers.
        valid: bool [rows, columns], False where a pixel has no data. Such pixels are filled
            (`Scaling.filled`). None: all have data.
        scaling: maps stored values to [0, 1].
        channels: number of channels of the network. A single channel is repeated.
    """

    pixels: Tensor | np.ndarray
    place: Area
    valid: np.ndarray | None = None
    scaling: Scaling | None = None
    channels: int = 0

    def floats(self, area: Area, device: torch.device) -> Tensor:
        """Rows and columns of the image as float [B, c, rows, columns] in [0, 1]."""
        rows, columns = self._inside(area)
        pixels = self.pixels[..., rows, columns]
        if isinstance(pixels, Tensor):
            return pixels
        assert self.scaling is not None
        stored = to_channels(pixels, self.channels)
        if self.valid is not None:
            stored = self.scaling.filled(stored, self.valid[rows, columns])
        stored = np.ascontiguousarray(stored)
        if device.type == "cpu":
            return self.scaling.to_float(stored)[None]
        return self.scaling.to_float(torch.from_numpy(stored).to(device))[None]

    def invalid(self, area: Area) -> np.ndarray | None:
        """Where the rows and columns of the image have no data; None where all have."""
        return None if self.valid is None else ~self.valid[self._inside(area)]

    def valid_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
        """Which pixels at these rows and columns of the image have data, bool [rows, columns]; None
        if all have.
        """
        if self.valid is None:
            return None
        found = self.valid[rows[:, None] - self.place[0].start, columns - self.place[1].start]
        return None if found.all() else found

    def _inside(self, area: Area) -> tuple[slice, slice]:
        rows, columns = (slice(a.start - p.start, a.stop - p.start) for a, p in zip(area, self.place, strict=True))
        return rows, columns


def make_plan(
    native: tuple[int, int],
    inner: tuple[int, int],
    padded: tuple[int, int],
    size: tuple[int, int],
    *,
    side: int,
    multiple: int,
    grain: int,
    reach: int,
    pixel_bytes: float,
    keep: bool,
) -> Plan:
    """The plan of an image, see `Plan`.

    Args:
        side: largest side of a tile, pixels; `multiple` if that is larger.
        multiple: tiles begin at multiples of it, pixels.
        grain: windows begin at multiples of it, pixels.
        reach: pixels that a window has beyond its tile, inside the image.
        pixel_bytes: bytes of stored values for each pixel of the inner image.
        keep: whether the windows of the first pass are kept for the second.
    """
    rows, columns = ([*_parts(n, side, multiple)] for n in padded)

    def window(part: range, n: int) -> range:
        halo = -(-reach // grain) * grain
        return range(max(part.start - halo, 0), min(part.stop + halo, n))

    strips: list[list[Tile]] = []
    for r in rows:
        tiles = [Tile(r, c, (window(r, padded[0]), window(c, padded[1]))) for c in columns]
        tile_bytes = len(tiles[0].window[0]) * side * pixel_bytes
        number = max(1, int(READ_BYTES / max(tile_bytes, 1)))
        strips += [tiles[i : i + number] for i in range(0, len(tiles), number)]
    return Plan(native, inner, padded, size, strips, 1 if keep else 2)


def _parts(n: int, side: int, multiple: int) -> Iterator[range]:
    """0 .. n in parts of about equal length, at most `side` each, that begin at multiples of
    `multiple`.
    """
    units = -(-n // multiple)
    number = -(-units // max(side // multiple, 1))
    edges = [i * units // number * multiple for i in range(number)] + [n]
    for first, stop in pairwise(edges):
        yield range(first, stop)


class Weights(NamedTuple):
    """Each output is a weighted sum of inputs: their indices int64 and weights float32, [terms,
    outputs].
    """

    indices: Tensor
    values: Tensor


def shrinking(outputs: range, n: int, m: int) -> Weights:
    """The weights of bilinear resizing from n inputs to m with antialiasing, as in
    `torch.nn.functional.interpolate`, for some of the outputs.
    """
    scale = n / m
    support = max(scale, 1.0)
    centre = (np.arange(outputs.start, outputs.stop) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int64), n)
    indices = first + np.arange(int((stop - first).max()))[:, None]
    values = np.maximum(1 - np.abs((indices - centre + 0.5) / support), 0) * (indices < stop)
    return _weights(indices.clip(max=n - 1), values / values.sum(axis=0))


def upsampling(outputs: range, n: int, m: int, stride: int, last: int) -> Weights:
    """The weights of bilinear interpolation of positions at the centres of the outputs.

    Args:
        outputs: indices of outputs.
        n: pixels that all outputs cover.
        m: number of all outputs.
        stride: pixels of a position.
        last: index of the last position. The first and the last are repeated beyond the border.
    """
    at = (np.arange(outputs.start, outputs.stop) + 0.5) * (n / m) / stride - 0.5
    low = np.floor(at).astype(np.int64)
    indices = np.stack([low, low + 1]).clip(0, last)
    return _weights(indices, np.stack([1 - (at - low), at - low]))


def _weights(indices: np.ndarray, values: np.ndarray) -> Weights:
    return Weights(torch.from_numpy(indices), torch.from_numpy(values.astype(np.float32)))


def weighted(maps: Tensor, dim: int, weights: Weights, first: int) -> Tensor:
    """The weighted sums of maps [B, C, h, w] along dimension 2 or 3.

    Args:
        first: index of the first input that `maps` has.
    """
    shape = (-1, 1) if dim == 2 else (-1,)
    total: Tensor | None = None
    for indices, values in zip(weights.indices, weights.values, strict=True):
        part = maps.index_select(dim, (indices - first).to(maps.device)) * values.view(shape).to(maps.device)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
