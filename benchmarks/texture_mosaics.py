"""Images of a kind that no recipe was tuned on, whose answers are known: mosaics of photographed textures.

Each image is cut into a few regions, each filled with a random piece of brick, grass or gravel (photographs that come
with scikit-image), in grey. All three have the same distribution of intensities, under an illumination that varies over
every image: only texture tells them apart.
"""

from pathlib import Path

import numpy as np
from image_folder import write_folder

NAME = "texture-mosaics"
TEXTURES = ("brick", "grass", "gravel")
REGIONS = 4  # of an image
MAGNIFICATION = 2  # the photographs are shrunk by it: 256 pixels a side


def equalised(photograph: np.ndarray) -> np.ndarray:
    """Intensities replaced by their normal scores, so that every texture has the same histogram."""
    from scipy.stats import norm

    small = photograph.reshape(256, MAGNIFICATION, 256, MAGNIFICATION).mean(axis=(1, 3))
    rank = small.ravel().argsort().argsort().reshape(small.shape)
    return norm.ppf((rank + 0.5) / small.size)


def mosaic(rng: np.random.Generator, textures: list[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 [side, side], and its labels."""
    y, x = np.mgrid[:side, :side]
    seeds = rng.uniform(0, side, (REGIONS, 2))
    region = ((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(axis=2)
    kinds = rng.integers(0, len(textures), REGIONS)
    image, label = np.zeros((side, side)), kinds[region].astype(np.uint8)
    for i, kind in enumerate(kinds):
        top, left = rng.integers(0, 256 - side, 2)
        piece = textures[kind][top : top + side, left : left + side]
        image = np.where(region == i, piece, image)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 25)
    light = strength * (np.cos(angle) * (x / side - 0.5) + np.sin(angle) * (y / side - 0.5))
    return (128 + rng.normal(0, 15) + light + 32 * image).clip(0, 255).astype(np.uint8), label


def write(root: Path, train: int = 600, evaluation: int = 100, side: int = 64, seed: int = 0) -> Path:
    """A folder for `--data DIR`; returns it."""
    from skimage import data

    textures = [equalised(getattr(data, name)()) for name in TEXTURES]
    rng = np.random.default_rng(seed)
    return write_folder(root, [mosaic(rng, textures, side) for _ in range(train + evaluation)], train, TEXTURES)
