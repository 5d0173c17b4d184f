"""What the drawn sets are drawn with: fields of noise, regions, and how a set is written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from image_folder import write_folder
from scipy.ndimage import gaussian_filter

Drawn = tuple[np.ndarray, np.ndarray]  # an image, uint8 [side, side] or [side, side, 3], and its labels


@dataclass(frozen=True)
class DrawnSet:
    """A set that `write` makes; `draw` makes one image."""

    NAME: str
    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, int], Drawn]

    def write(self, root: Path, train: int = 600, evaluation: int = 100, side: int = 64, seed: int = 0) -> Path:
        """A folder for `--data DIR`; returns it."""
        rng = np.random.default_rng(seed)
        pairs = [self.draw(rng, side) for _ in range(train + evaluation)]
        pairs = [(image.clip(0, 255).astype(np.uint8), label.astype(np.uint8)) for image, label in pairs]
        return write_folder(root, pairs, train, self.classes)


def grid(side: int) -> np.ndarray:
    """Rows and columns of every pixel."""
    return np.mgrid[:side, :side]


def turned(side: int, angle, centre=(0, 0)) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel along a direction and across it, from a centre (row, column) or several."""
    y, x = grid(side)
    y, x = y - centre[0], x - centre[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def noise(rng: np.random.Generator, side: int, sigma) -> np.ndarray:
    """Smoothed noise of mean 0 and variance 1."""
    field = gaussian_filter(rng.normal(size=(side, side)), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def blobs(rng: np.random.Generator, side: int, sigma: float, bias: np.ndarray) -> np.ndarray:
    """Labels of round-edged regions; a class with a greater bias covers more, and each image has shares of its own."""
    fields = np.stack([noise(rng, side, sigma) for _ in bias], -1) + bias
    return (fields + 0.6 * rng.normal(size=len(bias))).argmax(-1)


def cells(rng: np.random.Generator, side: int, classes: int, number: int) -> np.ndarray:
    """Labels of the Voronoi cells of random points."""
    points = rng.uniform(0, side, (number, 2))
    y, x = grid(side)
    squares = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return rng.integers(0, classes, number)[squares.argmin(-1)]


def pick(maps: list[np.ndarray], label: np.ndarray) -> np.ndarray:
    """At each pixel the number of its class's map."""
    return np.take_along_axis(np.stack(maps, -1), label[..., None], -1)[..., 0]
