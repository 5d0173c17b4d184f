"""What the drawn sets are drawn with: fields of noise, regions, colours, a camera, and how a set is written."""

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


def photograph(rng: np.random.Generator, scene: np.ndarray, uneven: float, blur: float, grain: float) -> np.ndarray:
    """A scene of reflectances 0 to 1 as a camera gives it, in grey or colour.

    `uneven` is how much the light varies over the image, `blur` the lens's in pixels, and `grain` the noise of the
    sensor where the light is full; it falls with the root of the light, to a floor.
    """
    side, colours = len(scene), scene.shape[2:]
    slope = turned(side, rng.uniform(0, 2 * np.pi), (side / 2, side / 2))[0] / side
    light = np.exp(uneven * (slope + 0.5 * noise(rng, side, side / 4)))
    exposure = rng.uniform(0.7, 1.1) * np.exp(0.04 * rng.normal(size=colours))
    lit = scene * light.reshape(light.shape + (1,) * len(colours)) * exposure
    seen = gaussian_filter(lit, (blur, blur) + (0,) * len(colours)).clip(0)
    return 255 * (seen + grain * np.sqrt(seen + 0.1) * rng.normal(size=seen.shape))


def tones(rng: np.random.Generator, colours, brightness: float, hue: float) -> np.ndarray:
    """Colours [n, 3] of 0 to 1, varied from those of 0 to 255 that are given."""
    colours = np.array(colours) / 255
    return colours * np.exp(brightness * rng.normal(size=(len(colours), 1)) + hue * rng.normal(size=colours.shape))


def mixed(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Two colours, or one for each pixel, in proportion."""
    share = share.clip(0, 1)[..., None]
    return first * (1 - share) + second * share


def ellipse(side: int, centre, radius: float, stretch: float = 1, angle: float = 0) -> np.ndarray:
    """Distance of every pixel from a centre, in radii of an ellipse that is `stretch` times as long as wide."""
    along, across = turned(side, angle, centre)
    return np.hypot(along / stretch, across) / radius
