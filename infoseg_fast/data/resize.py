"""Resizing by the rules of OpenCV, which the published protocols use, in numpy.

`nearest` and `halved` give OpenCV's values exactly. `linear`, before it rounds, is within 0.01 of
OpenCV's float result, as versions of OpenCV are of each other. A stored value is then within 0.51
of the protocol's.
"""

from functools import lru_cache

import numpy as np


def resized_side(n: int, scale: float) -> int:
    """round(n * scale), halves to even, at least 1."""
    return max(1, int(np.rint(n * scale)))


@lru_cache(maxsize=4096)
def _taps(n: int, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two input positions of each output position, and the weight of the second."""
    position = ((np.arange(resized_side(n, scale)) + 0.5) * (1 / scale) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.intp)
    weight = position - first.astype(np.float32)
    weight[(first < 0) | (first >= n - 1)] = 0
    first = first.clip(0, n - 1)
    return first, np.minimum(first + 1, n - 1), weight.astype(np.float32)


def linear(pixels: np.ndarray, scale: float) -> np.ndarray:
    """INTER_LINEAR on float32, without antialiasing, rounded: uint8 [rows, columns, c] of another
    size.
    """
    above, below, wy = _taps(pixels.shape[0], scale)
    left, right, wx = _taps(pixels.shape[1], scale)
    wx, wy = wx[:, None], wy[:, None, None]

    def row(chosen: np.ndarray) -> np.ndarray:
        rows = pixels[chosen]
        first = rows[:, left].astype(np.float32)
        first += (rows[:, right].astype(np.float32) - first) * wx
        return first

    top = row(above)
    top += (row(below) - top) * wy
    return np.rint(top, out=top).astype(np.uint8)


def halved(pixels: np.ndarray) -> np.ndarray:
    """INTER_LINEAR by 0.5 on uint8 [rows, columns, c] with even sides: means of 2 x 2 pixels, halves
    rounded up.
    """
    wide = pixels.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def nearest(labels: np.ndarray, scale: float) -> np.ndarray:
    """INTER_NEAREST on [rows, columns] of any dtype: the input position is floor(output position /
    scale).
    """
    rows, columns = (
        np.minimum(np.floor(np.arange(resized_side(n, scale)) * (1 / scale)).astype(np.intp), n - 1)
        for n in labels.shape
    )
    return labels[rows[:, None], columns]
