"""The vertical position of pixels: its values, the images that get it, and what depends on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import infoseg_fast as isf
from infoseg_fast import tile_labels
from infoseg_fast.augment import colour_draws, jittered
from infoseg_fast.batches import Crops, data_info
from infoseg_fast.config import Settings
from infoseg_fast.data import for_training, open_set
from infoseg_fast.data.crops import Part, held_in_memory
from infoseg_fast.data.resident import ResidentSet
from infoseg_fast.errors import DataError
from infoseg_fast.ops.information_of_moments import information_of_moments
from infoseg_fast.position import position_share, with_position
from infoseg_fast.recipe.appearance import appearance_information
from infoseg_fast.recipe.description import POSITION_NOISE, description, with_position_noise
from infoseg_fast.reference import appearance_statistics
from infoseg_fast.reference.class_moments import moments_of
from infoseg_fast.train import train

SIZES = ((40, 48), (56, 40), (33, 70))
SMALL = {"crop": 32, "width": 8, "dim": 16, "batch_size": 4, "eval_every": 0, "classes": 3, "steps": 6}


@pytest.fixture
def photographs(tmp_path):
    """Images that are bright above and dark below, with noise, of several sizes."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(12):
        rows, columns = SIZES[i % len(SIZES)]
        light = np.linspace(220, 60, rows)[:, None, None] + rng.normal(0, 25, (rows, columns, 3))
        Image.fromarray(light.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / "images" / f"{i}.png")
    return str(tmp_path / "data")


def test_the_position_is_the_row_of_the_whole_image():
    whole = with_position(torch.rand(2, 3, 5, 4))
    assert torch.equal(whole[:, 3], ((torch.arange(5) + 0.5) / 5)[:, None].expand(2, 5, 4))
    part = with_position(torch.rand(2, 3, 4, 4), torch.tensor([[1, 5], [3, 5]]))
    assert torch.equal(part[0, 3], whole[0, 3, 1:])
    assert torch.equal(part[1, 3, :2], whole[0, 3, 3:])
    assert torch.equal(part[1, 3, 2:], whole[0, 3, 4:].expand(2, 4))  # padding


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_crops_have_the_position_that_they_are_cut_from(photographs, scale):
    """Against images whose first channel is the position in steps of 1/255."""
    images = open_set(photographs, "train", num_classes=3, scale=scale)
    settings = Settings.create({"data": photographs, "scale": scale} | SMALL)
    images.position = True
    memory = held_in_memory(images)
    for index in range(len(memory)):
        rows = memory.size(index)[0]
        memory.scaled(index)[0][0] = np.round(255 * (np.arange(rows)[:, None] + 0.5) / rows)
    source = Crops(memory, settings, torch.device("cpu"), 0, 3)
    for stored, _ in source:
        found, _ = source.decoded(*stored)
        assert found.shape[1] == 4
        assert (found[:, 0] - found[:, 3]).abs().max() < 0.5 / 255 + 1e-6


def test_a_gpu_finds_the_same_places(photographs):
    images = held_in_memory(open_set(photographs, "train", num_classes=3))
    resident = ResidentSet(images, 32, False, torch.device("cpu"))
    source = Crops(images, Settings.create({"data": photographs} | SMALL), torch.device("cpu"), 0, 3)
    for crops in source.sampler:
        expected = torch.tensor([images.place(*crop, 32) for crop in crops])
        assert torch.equal(resident.rows(resident.places(crops)), expected)


def test_images_decide_whether_they_get_it(photographs, tmp_path):
    bright = open_set(photographs, "train", num_classes=3)
    turned = tmp_path / "turned" / "images"
    turned.mkdir(parents=True)
    for file in Path(photographs, "images").iterdir():
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(turned / file.name)
    plain = open_set(str(turned.parent), "train", num_classes=3)
    assert position_share(bright) > 0.5
    assert position_share(plain) < 0.05
    for images, expected in ((bright, True), (plain, False)):
        given = {"data": photographs} | SMALL
        assert data_info(images, Settings.create(given)).position is expected
        assert data_info(images, Settings.create(given | {"position": "off"})).position is False
        assert data_info(images, Settings.create(given | {"position": "on"})).position is True
        assert data_info(images, Settings.create(given | {"recipe": "paper"})).position is False


def test_parts_of_a_scene_do_not_get_it(tmp_path):
    light = np.linspace(220, 60, 600)[:, None, None].repeat(600, 1).repeat(3, 2)
    Image.fromarray(light.astype(np.uint8)).save(tmp_path / "scene.png")
    images = for_training(open_set(str(tmp_path / "scene.png"), "train", num_classes=3))
    assert not data_info(images, Settings.create({"data": "scene"} | SMALL)).position
    rows = {images.place(i, 0.5, 0.5, 32) for i in range(len(images))}
    assert {n for _, n in rows} == {600}
    assert len(rows) > 2


def test_jitter_leaves_the_position():
    for channels in (1, 3, 4):
        images = with_position(torch.rand(2, channels, 8, 8))
        draws = colour_draws(0.3, torch.Generator().manual_seed(0), Part(0, 2, 2), torch.device("cpu"))
        found = jittered(images, draws, True)
        assert torch.equal(found[:, -1], images[:, -1])
        assert not torch.equal(found[:, :-1], images[:, :-1])


def test_noise_bounds_what_the_position_tells():
    """Of classes that are strips of the image, and against noise that is really added."""
    y = description(torch.full((1, 3, 64, 64), 0.5), with_position(torch.zeros(1, 0, 64, 64)), (16, 16)).double()
    strips = torch.nn.functional.one_hot(torch.arange(16) // 4).double().T[None, :, :, None].expand(1, 4, 16, 16)
    statistics = appearance_statistics(y)
    moments, total = moments_of(strips, statistics), statistics.sum(dim=(0, 2, 3))
    without = information_of_moments(moments, total).item()
    found = information_of_moments(with_position_noise(moments, 1), with_position_noise(total, 0)).item()
    assert found < 0.5 * np.log(1 + 1 / POSITION_NOISE) < without

    many, noisy = strips.repeat(400, 1, 1, 1), y[:, -1:].repeat(400, 1, 1, 1)
    noisy = noisy + (POSITION_NOISE**0.5) * noisy.std(correction=0) * torch.randn_like(noisy)
    # The resolution is relative to the deviation of the noisy position.
    expected = appearance_information(many, noisy, resolution=0.1 / (1 + POSITION_NOISE) ** 0.5).item()
    assert found == pytest.approx(expected, abs=0.01)


def test_tiles_give_the_labels_of_the_whole_image(photographs, tmp_path, monkeypatch):
    train(photographs, tmp_path / "run", **SMALL | {"steps": 60})
    segmenter = isf.load(tmp_path / "run")
    assert segmenter.labelling.data.position
    assert segmenter.labelling.network.mean.numel() == 4
    images = torch.linspace(0.9, 0.2, 150)[:, None] + 0.1 * torch.randn(2, 3, 150, 118)
    whole = segmenter.segment(images)
    assert len(whole.unique()) > 1
    monkeypatch.setattr(tile_labels, "TILE", 32)
    assert torch.equal(isf.load(tmp_path / "run").segment(images), whole)
    # What is segmented depends on the position.
    flipped = segmenter.segment(images.flip(2)).flip(1)
    assert not torch.equal(flipped, whole)


def test_settings_that_exclude_it():
    for more in ({"inputs": "sobel"}, {"backbone": "a:b"}):
        with pytest.raises(DataError, match="--position on needs"):
            Settings.create({"data": "any", "position": "on"} | more)
        assert Settings.create({"data": "any"} | more).position == "off"
