"""The default recipe averages probabilities where the images are noisy, and only there."""

import numpy as np
import pytest
from PIL import Image

from infoseg_fast import load
from infoseg_fast.data import open_set
from infoseg_fast.recipe.smoothing import noise_share, smoothing_radius
from infoseg_fast.train import train

FREQUENCY = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
BAND = (FREQUENCY > 0.03) & (FREQUENCY < 0.06)  # cycles a pixel
SMALL = {"steps": 2, "crop": 32, "width": 8, "dim": 16, "batch_size": 2, "eval_every": 0, "classes": 2}


def folder(root, make, number=4):
    (root / "images").mkdir(parents=True)
    for i in range(number):
        Image.fromarray(make(np.random.default_rng(i))).save(root / "images" / f"{i}.png")
    return str(root)


def noise(rng):
    """Cells of 4 x 4 pixels that are independent of each other."""
    return rng.integers(40, 216, (16, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)


def objects(rng):
    """Squares of 16 x 16 pixels of two colours, anywhere: no two neighbouring cells alike, and yet
    no noise.
    """
    image = np.full((64, 64, 3), 90, np.uint8)
    for y, x in rng.integers(0, 48, (6, 2)):
        image[y : y + 16, x : x + 16] = 200
    return image


def flat(rng):
    return np.full((64, 64, 3), 90, np.uint8)


def test_noise_has_share_1_and_smooth_images_and_small_objects_have_none(tmp_path):
    assert noise_share(open_set(folder(tmp_path / "noise", noise), "train")) == pytest.approx(1, abs=0.1)
    assert noise_share(open_set(folder(tmp_path / "flat", flat), "train")) == 0
    assert noise_share(open_set(folder(tmp_path / "objects", objects, 20), "train")) < 0.02

    def noisy(rng):
        """Noise over two halves."""
        image = np.full((64, 64, 3), 90, np.uint8)
        image[:, rng.integers(16, 48) :] = 200
        return with_noise(image, rng)

    assert 0.05 < noise_share(open_set(folder(tmp_path / "noisy", noisy, 20), "train")) < 0.5


def with_noise(image, rng):
    return (image + 0.3 * (noise(rng).astype(float) - 128)).astype(np.uint8)


def lines(rng):
    """Dark lines a few pixels wide, such as membranes: level lines of a random surface."""
    waves = np.fft.ifft2(np.fft.fft2(rng.standard_normal((96, 96))) * BAND).real
    return np.where(abs(waves / waves.std()) < 0.3, 60, 190).astype(np.uint8)


def test_positions_with_lines_are_not_averaged(tmp_path):
    """Averages over 3 x 3 positions would remove the lines."""
    assert noise_share(open_set(folder(tmp_path / "data", lines, 20), "train")) == 0


def test_positions_within_a_coarse_texture_are_averaged(tmp_path):
    """Small objects everywhere in noise: their texture changes more slowly than their colour."""
    data = folder(tmp_path / "data", lambda rng: with_noise(objects(rng), rng), 20)
    assert noise_share(open_set(data, "train")) > 0.05


def test_the_shape_and_the_size_of_images_do_not_matter(tmp_path):
    whole = noise_share(open_set(folder(tmp_path / "whole", noise), "train"))
    cut = noise_share(open_set(folder(tmp_path / "cut", lambda rng: noise(rng)[:62, :39]), "train"))
    assert cut == pytest.approx(whole, abs=0.1)
    tiny = folder(tmp_path / "tiny", lambda rng: rng.integers(0, 255, (3, 2, 3), np.uint8))
    assert noise_share(open_set(tiny, "train")) == 0


@pytest.mark.parametrize(("make", "radius"), [(noise, 1), (objects, 0), (flat, 0)])
def test_auto_averages_noisy_images_alone(tmp_path, make, radius):
    share = noise_share(open_set(folder(tmp_path / "data", make), "train"))
    assert smoothing_radius("auto", share) == radius
    assert smoothing_radius(2, share) == 2


def test_a_run_decides_once_and_keeps_it(tmp_path):
    data, run = folder(tmp_path / "data", noise), tmp_path / "run"
    train(data, run, **SMALL)
    assert load(run).labelling.smooth == 1
    train(None, run, resume=True, steps=3)
    assert load(run).labelling.smooth == 1
