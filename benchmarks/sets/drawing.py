"""Parts of the drawn sets: fields of noise, regions, and the set itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from .image_folder import write_folder

# An image, [side, side] or [side, side, 3] from 0 to 255, and its labels, [side, side].
Drawn = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class DrawnSet:
    """A set of drawn images. `draw(rng, side)` makes an image; `classes` names the labels."""

    name: str
    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, int], Drawn]

    def write(self, root: Path, train: int = 600, evaluation: int = 100, side: int = 64, seed: int = 0) -> Path:
        """Write the set as a folder for `--data DIR`; returns the folder."""
        rng = np.random.default_rng(seed)
        pairs = [self.draw(rng, side) for _ in range(train + evaluation)]
        pairs = [(image.clip(0, 255).astype(np.uint8), label.astype(np.uint8)) for image, label in pairs]
        return write_folder(root, pairs, train, self.classes)


def noise(rng: np.random.Generator, side: int, sigma: float) -> np.ndarray:
    """Gaussian noise [side, side], smoothed by `sigma` pixels, of mean 0 and variance 1."""
    field = gaussian_filter(rng.normal(size=(side, side)), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def blobs(rng: np.random.Generator, side: int, sigma: float, bias: np.ndarray) -> np.ndarray:
    """Labels of smooth regions. A class with a greater bias covers more; the shares vary between
    images.
    """
    fields = np.stack([noise(rng, side, sigma) for _ in bias], -1) + bias
    return (fields + 0.6 * rng.normal(size=len(bias))).argmax(-1)


def cells(rng: np.random.Generator, side: int, classes: int, number: int) -> np.ndarray:
    """Labels of the Voronoi cells of `number` random points."""
    points = rng.uniform(0, side, (number, 2))
    y, x = np.mgrid[:side, :side]
    squares = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return rng.integers(0, classes, number)[squares.argmin(-1)]
