"""Landscapes seen from the ground: sky over hills, with forest, meadow and water below.

Every surface has noise of its own roughness and a colour that varies between images. The light of
each image changes the brightness and tint of all of them.
"""

import numpy as np

from .drawing import Drawn, DrawnSet

CLASSES = ("sky", "hills", "forest", "meadow", "water")
COLOURS = np.array([[150, 185, 225], [130, 120, 115], [50, 80, 45], [130, 150, 70], [60, 95, 125]]) / 255
VARIATION = np.array([0.12, 0.10, 0.06, 0.10, 0.08])  # variation of the colour between images
CONTRAST = np.array([0.03, 0.12, 0.30, 0.14, 0.06])  # amplitude of the noise, relative to the colour
SLOPE = np.array([2.0, 1.4, 0.6, 0.9, 1.2])  # the noise's amplitude is frequency ** -slope
STRETCH = np.array([1.0, 1.0, 1.0, 1.5, 4.0])  # width / height of the noise


def surface(rng: np.random.Generator, side: int, slope: float, stretch: float) -> np.ndarray:
    """Noise [side, side] of variance 1 and amplitude frequency ** -slope, `stretch` times as wide
    as high.
    """
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None] * stretch
    amplitude = np.hypot(fy, fx).clip(1 / side) ** -slope
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * amplitude).real
    return (field - field.mean()) / field.std()


def line(rng: np.random.Generator, side: int, height: float, roughness: float) -> np.ndarray:
    """A rough horizontal line: the row of each column, [side], about `height`."""
    steps = np.cumsum(rng.normal(size=side))
    steps -= np.linspace(steps[0], steps[-1], side)
    return height + roughness * steps


def landscape(rng: np.random.Generator, side: int) -> Drawn:
    y = np.mgrid[:side, :side][0]
    label = np.zeros((side, side), dtype=np.int64)
    height = side * rng.uniform(0.15, 0.5)
    label[y > line(rng, side, height, 0.8)] = CLASSES.index("hills")
    for name in rng.permutation(["forest", "meadow", "water"])[: rng.integers(1, 4)]:
        height += side * rng.uniform(0.08, 0.3)
        label[y > line(rng, side, height, 0.0 if name == "water" else 0.5)] = CLASSES.index(name)
    colours = COLOURS + VARIATION[:, None] * rng.normal(size=(5, 1)) * 0.5 + 0.03 * rng.normal(size=(5, 3))
    noise = np.stack([surface(rng, side, *how) for how in zip(SLOPE, STRETCH, strict=True)])
    grain = np.take_along_axis(noise, label[None], axis=0)[0] * CONTRAST[label]
    image = colours[label] * (1 + grain[..., None])
    image += (0.10 * (1 - y / side) * (label == 0))[..., None]  # the sky pales towards the ground
    image *= rng.uniform(0.6, 1.1) * (1 + 0.06 * rng.normal(size=3))  # the light of the image
    image += rng.normal(0, 0.012, image.shape)
    return 255 * image, label


LANDSCAPES = DrawnSet("landscapes", CLASSES, landscape)
