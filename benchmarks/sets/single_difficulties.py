"""Five sets with one difficulty each."""

import numpy as np

from .drawing import Drawn, DrawnSet, blobs, cells, noise


def radar(rng: np.random.Generator, side: int) -> Drawn:
    """Multiplicative speckle; two of the four classes have texture too."""
    label = blobs(rng, side, 9, np.zeros(4))
    mean = np.array([10.0, 32.0, 60.0, 95.0])[label]
    mean = mean * np.where(label == 2, np.exp(0.35 * noise(rng, side, 1.2)), 1)
    mean = mean * np.where((label == 3) & (rng.random((side, side)) < 0.08), 3.0, 1)
    return mean * rng.uniform(0.8, 1.2) * rng.gamma(4, 1 / 4, (side, side)), label


def noisy_colours(rng: np.random.Generator, side: int) -> Drawn:
    """Four colours, and noise as strong as their differences."""
    label = cells(rng, side, 4, 9)
    colours = np.array([[150, 90, 80], [90, 140, 90], [80, 100, 150], [140, 140, 90]])
    return colours[label] + rng.normal(0, 30, (side, side, 3)), label


def unequal_classes(rng: np.random.Generator, side: int) -> Drawn:
    """One class covers two thirds of the pixels, another a fortieth."""
    label = blobs(rng, side, 7, np.array([2.2, 1.0, 0.2, -0.5]))
    colours = np.array([[80, 110, 70], [120, 105, 75], [60, 80, 110], [190, 190, 180]])
    grain = np.stack([noise(rng, side, 1) for _ in range(3)], -1)
    texture = np.array([14, 8, 4, 10])[label]
    image = colours[label] + noise(rng, side, 1.0)[..., None] * texture[..., None] + 5 * grain
    return image * rng.uniform(0.8, 1.2), label


def uneven_light(rng: np.random.Generator, side: int) -> Drawn:
    """The classes differ in hue alone: brightness varies more within classes than between them."""
    label = cells(rng, side, 5, 12)
    colours = np.array([[0.8, 0.35, 0.3], [0.35, 0.7, 0.3], [0.3, 0.4, 0.85], [0.75, 0.7, 0.3], [0.5, 0.5, 0.5]])
    light = np.exp(0.5 * noise(rng, side, 14) + 0.5 * rng.normal()) * 110
    image = colours[label] * light[..., None] * (1 + 0.1 * noise(rng, side, 1))[..., None]
    return image + rng.normal(0, 5, (side, side, 3)), label


def grains(rng: np.random.Generator, side: int) -> Drawn:
    """Grey noise of three grain sizes, and none: the classes differ in texture alone."""
    label = cells(rng, side, 4, 6)
    textures = np.stack([*(noise(rng, side, sigma) for sigma in (0.5, 1.3, 3.0)), np.zeros((side, side))], -1)
    texture = np.take_along_axis(textures, label[..., None], -1)[..., 0]
    return 125 + 30 * texture + 12 * noise(rng, side, 20) + rng.normal(0, 4, (side, side)), label


RADAR = DrawnSet("radar", ("water", "field", "forest", "town"), radar)
NOISY_COLOURS = DrawnSet("noisy-colours", ("red", "green", "blue", "yellow"), noisy_colours)
UNEQUAL_CLASSES = DrawnSet("unequal-classes", ("meadow", "soil", "water", "rock"), unequal_classes)
UNEVEN_LIGHT = DrawnSet("uneven-light", ("red", "green", "blue", "yellow", "grey"), uneven_light)
GRAINS = DrawnSet("grains", ("fine", "middle", "coarse", "none"), grains)
