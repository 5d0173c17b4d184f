"""Sections of stained tissue: glands (a lumen in a ring of epithelium) in fibrous stroma, with
nuclei.

Haematoxylin and eosin absorb light (Beer and Lambert). As slides do, each image has its own
strength of staining, thickness, fibres and noise.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from .drawing import Drawn, DrawnSet, noise

CLASSES = ("lumen", "stroma", "epithelium", "nucleus")
# Optical density of haematoxylin and eosin (rows) for red, green and blue light.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
# Mean density of both stains in each class.
DENSITY = np.array([[0.03, 0.03], [0.12, 0.55], [0.45, 0.30], [1.25, 0.25]])


def fibres(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise in stripes along a direction that varies over the image."""
    y, x = np.mgrid[:side, :side]
    angle = rng.uniform(0, np.pi) + 0.5 * noise(rng, side, side / 4)
    across = np.cos(angle) * x + np.sin(angle) * y + 2 * noise(rng, side, 6)
    return np.sin(across * rng.uniform(0.9, 1.5) + noise(rng, side, 3))


def nuclei(
    rng: np.random.Generator, label: np.ndarray, spacing: float, within: int, radius: float, stretch: float
) -> None:
    """Label ellipses as nuclei within class `within`, about `spacing` pixels apart."""
    side = len(label)
    y, x = np.mgrid[:side, :side]
    allowed = label == within
    for _ in range(int(allowed.sum() / spacing**2)):
        places = np.argwhere(allowed)
        if not len(places):
            return
        cy, cx = places[rng.integers(len(places))]
        angle, size = rng.uniform(0, np.pi), radius * rng.uniform(0.8, 1.25)
        along = (np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)) / stretch
        off = np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
        distance = np.hypot(along, off)
        label[(distance < size) & (label == within)] = CLASSES.index("nucleus")
        allowed &= distance > size + 2


def section(rng: np.random.Generator, side: int) -> Drawn:
    y, x = np.mgrid[:side, :side]
    label = np.full((side, side), CLASSES.index("stroma"))
    for _ in range(rng.integers(1, 4)):
        cy, cx = rng.uniform(0, side, 2)
        distance = np.hypot(y - cy, x - cx) + 3 * noise(rng, side, 8)
        outer = rng.uniform(14, 28)
        label[distance < outer] = CLASSES.index("epithelium")
        label[distance < outer * rng.uniform(0.35, 0.6)] = CLASSES.index("lumen")
    nuclei(rng, label, 11, CLASSES.index("epithelium"), 4.0, 1.2)
    nuclei(rng, label, 20, CLASSES.index("stroma"), 2.5, 2.5)
    density = DENSITY[label]
    density = gaussian_filter(density, (0.7, 0.7, 0))
    density[..., 1] += 0.18 * fibres(rng, side) * (label == CLASSES.index("stroma"))
    density[..., 0] *= 1 + 0.25 * noise(rng, side, 1)  # chromatin and granules
    density *= rng.uniform(0.7, 1.3, 2) * rng.uniform(0.85, 1.15)  # the slide's staining and thickness
    light = 245 * np.exp(-density.clip(0) @ STAINS)
    return light + rng.normal(0, 4, light.shape), label


TISSUE_SECTIONS = DrawnSet("tissue-sections", CLASSES, section)
