"""Grey mosaics of photographed textures: brick, grass and gravel (photographs of scikit-image).

Each image has a few regions, each filled with a random piece of a texture. All textures have the
same distribution of intensities and the light varies over every image, so the classes differ in
texture alone.
"""

from functools import cache

import numpy as np

from .drawing import Drawn, DrawnSet

TEXTURES = ("brick", "grass", "gravel")
REGIONS = 4  # per image
SHRINKING = 2  # of the photographs, to 256 pixels a side


def equalised(photograph: np.ndarray) -> np.ndarray:
    """The photograph with normal scores for intensities, so that every texture has the same
    histogram.
    """
    from scipy.stats import norm

    small = photograph.reshape(256, SHRINKING, 256, SHRINKING).mean(axis=(1, 3))
    rank = small.ravel().argsort().argsort().reshape(small.shape)
    return norm.ppf((rank + 0.5) / small.size)


@cache
def textures() -> list[np.ndarray]:
    """The equalised photographs, 256 x 256 each."""
    from skimage import data

    return [equalised(getattr(data, name)()) for name in TEXTURES]


def mosaic(rng: np.random.Generator, side: int) -> Drawn:
    y, x = np.mgrid[:side, :side]
    seeds = rng.uniform(0, side, (REGIONS, 2))
    region = ((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(axis=2)
    kinds = rng.integers(0, len(TEXTURES), REGIONS)
    image, label = np.zeros((side, side)), kinds[region]
    for i, kind in enumerate(kinds):
        top, left = rng.integers(0, 256 - side, 2)
        piece = textures()[kind][top : top + side, left : left + side]
        image = np.where(region == i, piece, image)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 25)
    light = strength * (np.cos(angle) * (x / side - 0.5) + np.sin(angle) * (y / side - 0.5))
    return 128 + rng.normal(0, 15) + light + 32 * image, label


TEXTURE_MOSAICS = DrawnSet("texture-mosaics", TEXTURES, mosaic)
