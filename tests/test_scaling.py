"""Limits of stored values, and few large images as training sets."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from test_data import refused, save
from test_train import SMALL

import infoseg_fast as isf
from infoseg_fast.data import FolderSet, ReadOptions, for_training, open_set
from infoseg_fast.data.base import ImageSet
from infoseg_fast.data.crops import CropSampler, channel_statistics, crop_loader, held_in_memory
from infoseg_fast.data.images import describe
from infoseg_fast.data.scaling import Scaling, eight_bit, estimate
from infoseg_fast.data.scenes import SceneCrops
from infoseg_fast.data.threaded import read_ahead
from infoseg_fast.errors import DataError
from infoseg_fast.recipe import DataInfo
from infoseg_fast.run_folder import RunFolder


def write(root, pixels, **options):
    """A folder of images [c, H, W]."""
    (root / "images").mkdir(parents=True)
    for number, image in enumerate(pixels):
        write_tiff(root / "images" / f"{number}.tif", image, **options)
    return root


def write_tiff(path, pixels, **options):
    """pixels [c, H, W]"""
    planar = {"planarconfig": "separate"} if len(pixels) > 1 else {}
    tifffile.imwrite(
        path, pixels.squeeze(0) if len(pixels) == 1 else pixels, photometric="minisblack", **planar, **options
    )


# Scaling


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_8_bit_values_are_exactly_divided_by_255(kind):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    found = eight_bit(1).to_float(pixels if kind == "numpy" else torch.from_numpy(pixels))
    assert found.dtype == torch.float32 and torch.equal(found, torch.from_numpy(pixels).float() / 255)
    assert np.array_equal(found.numpy(), pixels.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_limits_are_quantiles_of_each_channel(tmp_path, dtype):
    rng = np.random.default_rng(0)
    values = rng.normal([[[500]], [[3000]]], [[[20]], [[400]]], (5, 2, 60, 70)).round()
    values[:, :, :3, :1] = 30000  # fewer than 0.5 %
    images = open_set(str(write(tmp_path / "d", values.astype(dtype))), "train")
    scaling = images.scaling
    expected = np.quantile(values.transpose(1, 0, 2, 3).reshape(2, -1), (0.005, 0.995), axis=1)
    np.testing.assert_allclose([scaling.low, scaling.high], expected, rtol=1e-6)
    found = scaling.to_float(images.image(0))
    expected = ((values[0] - expected[0][:, None, None]) / (expected[1] - expected[0])[:, None, None]).clip(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.min() == 0 and found.max() == 1
    if dtype not in ("uint32",):  # which torch cannot subtract from, but converts
        torch.testing.assert_close(scaling.to_float(torch.from_numpy(images.image(0))), found, atol=1e-6, rtol=0)
    assert scaling == estimate(images)


def test_values_of_32_bits_keep_their_differences():
    pixels = np.array([[[2**30, 2**30 + 3]]], dtype=np.int32)
    for given in (pixels, torch.from_numpy(pixels)):
        assert Scaling((2.0**30,), (2.0**30 + 4,), "int32").to_float(given).tolist() == [[[0, 0.75]]]


def test_a_12_bit_camera_is_scaled_as_its_8_bit_copy(tmp_path):
    rng = np.random.default_rng(0)
    deep = (4095 * rng.beta(2, 2, (8, 3, 64, 64))).round()
    a = open_set(str(write(tmp_path / "a", deep.astype(np.uint16), byteorder=">")), "train")
    b = open_set(str(write(tmp_path / "b", (deep / 4095 * 255).round().astype(np.uint8))), "train")
    first, second = (torch.stack([s.scaling.to_float(s.image(i)) for i in range(8)]) for s in (a, b))
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] > 0.999
    assert 0.85 < first.std() / second.std() < 1.2


def test_pixels_without_data_do_not_move_the_limits(tmp_path):
    pixels = np.random.default_rng(0).integers(1000, 2000, (3, 2, 40, 40)).astype(np.int16)
    pixels[:, :, :20] = -9999
    images = open_set(str(write(tmp_path / "d", pixels)), "train", options=ReadOptions(nodata=-9999))
    assert min(images.scaling.low) >= 1000
    assert images.scaling.to_float(images.image(0)).min() == 0
    refused(
        lambda: (
            open_set(str(write(tmp_path / "e", pixels[:, :, :20])), "train", options=ReadOptions(nodata=-9999)).scaling
        ),
        "none of the pixels",
    )


def test_the_value_of_pixels_without_data_changes_no_crop(tmp_path):
    pixels, found = np.random.default_rng(0).integers(1000, 2000, (3, 2, 40, 40)).astype(np.uint16), []
    for value in (0, 60000):
        pixels[:, :, :15] = value
        root = write(tmp_path / str(value), pixels)
        images = open_set(str(root), "train", options=ReadOptions(nodata=value))
        mean, std = channel_statistics(images)
        images.scaling = DataInfo(2, 2, None, mean, std, images.scaling).scaling
        found.append(images.crops(np.arange(3), np.full(3, 0.4), np.zeros(3), 32))
    (first, valid), (second, _) = found
    assert np.array_equal(first, second) and not valid.all() and first.min() >= 1000 and first.max() < 2000


def test_constant_channels_and_rare_values_have_limits_apart(tmp_path):
    pixels = np.zeros((2, 2, 50, 50), np.uint16)
    pixels[0, 1, 0, 0] = 7
    scaling = open_set(str(write(tmp_path / "d", pixels)), "train").scaling
    assert scaling.low == (0, 0) and scaling.high == (1, 7)


def test_a_scaling_is_recorded_as_plain_values_and_checks_what_it_is_given():
    scaling = Scaling((1.5, 2.0), (10.0, 20.0), "uint16")
    assert Scaling.from_state(json.loads(json.dumps(scaling.state()))) == scaling
    assert scaling.accepts(np.int16) and not scaling.accepts(np.uint8) and not eight_bit(3).accepts(np.uint16)
    with pytest.raises(ValueError, match="3 channels, the scaling has 2"):
        scaling.to_float(np.zeros((3, 4, 4), np.uint16))


def test_a_set_takes_the_scaling_of_a_run(tmp_path):
    images = open_set(str(write(tmp_path / "d", np.ones((2, 1, 9, 9), np.uint16))), "eval")
    images.scaling = Scaling((0.0,), (4.0,), "uint16")
    assert held_in_memory(images).scaling.to_float(images.image(1)).unique().tolist() == [0.25]


# Scenes


def scene(tmp_path, shape=(2, 300, 400), dtype=np.uint8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, shape).astype(dtype)
    write_tiff(tmp_path / "scene.tif", pixels, tile=(64, 64), compression="deflate")
    return pixels


@pytest.mark.parametrize(("given_as", "memory"), [("file", False), ("file", True), ("folder", True), ("list", True)])
def test_crops_of_one_scene_are_its_windows_and_cover_it(tmp_path, given_as, memory):
    pixels = scene(tmp_path)
    data = tmp_path / "scene.tif"
    if given_as == "folder":
        save(tmp_path / "d/images/x.png", np.zeros((1, 1), np.uint8)).unlink()
        data = data.rename(tmp_path / "d/images/scene.tif").parent.parent
    elif given_as == "list":
        (tmp_path / "list.txt").write_text("scene.tif\n")
        data = tmp_path / "list.txt"
    images = for_training(open_set(str(data), "train"))
    assert isinstance(images, SceneCrops) and len(images) >= 256 and images.shortest_side == 300
    assert images.num_smaller(300) == 0 and images.num_smaller(301) == len(images)
    images = held_in_memory(images) if memory else images
    assert images.in_process == memory
    covered = np.zeros(pixels.shape[1:], bool)
    place = {pixels[:, r, c : c + 8].tobytes(): (r, c) for r in range(300) for c in range(393)}
    rng = np.random.default_rng(1)
    for side in (64, 150):
        indices = np.arange(len(images))
        batch, valid = images.crops(indices, rng.random(len(indices)), rng.random(len(indices)), side)
        assert valid is None
        for crop in batch:
            r, c = place[crop[:, 0, :8].tobytes()]
            assert np.array_equal(crop, pixels[:, r : r + side, c : c + side])
            covered[r : r + side, c : c + side] = True
    assert covered.mean() > 0.99


def test_a_small_scene_has_many_images(tmp_path):
    scene(tmp_path, (1, 64, 80))
    images = for_training(open_set(str(tmp_path / "scene.tif"), "train"))
    assert len(images) == 80 and images.shortest_side == 64
    mean, std = channel_statistics(images)
    assert len(mean) == len(std) == 1
    assert [images.size(i) for i in range(3)] == [(64, 80)] * 3


def test_a_few_large_images_are_scenes_and_many_or_small_ones_are_not(tmp_path):
    class Sized(ImageSet):
        name, channels, dtype, classes, num_classes, has_labels = "sized", 1, np.dtype(np.uint8), None, 2, False

        def __init__(self, number, side):
            self.stems, self.sizes = [str(i) for i in range(number)], [(side, side)] * number

    for number, side, expected in ((1, 40, True), (3, 1000, True), (3, 200, False), (64, 1000, False)):
        assert isinstance(for_training(Sized(number, side)), SceneCrops) == expected


def test_a_scene_is_scaled_and_keeps_its_labels_and_its_missing_data(tmp_path):
    pixels = scene(tmp_path, (1, 1100, 1000), np.uint16)
    pixels[:, :600] = 0
    root = tmp_path / "d"
    (root / "images").mkdir(parents=True)
    write_tiff(root / "images/x.tif", pixels, tile=(64, 64), compression="deflate")
    label = (np.arange(1000) // 500).astype(np.uint8)[None].repeat(1100, 0)
    label[:, :100] = 255
    save(root / "labels/x.png", label)
    for scale in (1.0, 0.5):
        whole = open_set(str(root), "train", options=ReadOptions(nodata=0), scale=scale)
        images = for_training(whole)
        assert whole.windowed and images.has_labels and images.num_classes == 2
        rng = np.random.default_rng(0)
        chosen = rng.integers(0, len(images), 40)
        y, x = rng.random(40), rng.random(40)
        batch, valid = images.crops(chosen, y, x, 64, labelled=True)
        held = held_in_memory(images)
        expected, mask = held.crops(chosen, y, x, 64, labelled=True)
        if scale == 1:
            assert np.array_equal(batch, expected) and np.array_equal(valid, mask)
        else:  # of parts that are resized alone, the border differs
            inside = mask[:, 2:-2, 2:-2]
            assert (valid[:, 2:-2, 2:-2] == inside).mean() > 0.98
            far = np.abs(batch[:, 0, 2:-2, 2:-2].astype(int) - expected[:, 0, 2:-2, 2:-2])[inside]
            assert far.mean() < 40
        assert not valid.all() and valid.any()
    assert images.label(0).shape == images.sizes[0]


def test_a_scene_larger_than_memory_is_read_by_windows(tmp_path):
    """A sparse file of 12.8 GB: only the blocks that a crop touches are read."""
    rasterio, path = pytest.importorskip("rasterio"), tmp_path / "scene.tif"
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", height=40_000, width=40_000, count=8, dtype="uint8", **layout):
        pass
    assert describe(path)[:3] == (40_000, 40_000, 8)
    images = held_in_memory(for_training(open_set(str(path), "train")))
    assert not images.in_process and len(images) > 90_000
    batch, valid = images.crops(np.arange(0, len(images), 9999), np.zeros(10), np.zeros(10), 128)
    assert batch.shape == (10, 8, 128, 128) and valid is None
    refused(lambda: open_set(str(path), "eval").read(0), "scene.tif", "11.9 GiB")


@pytest.mark.parametrize("windowed", [True, False])
def test_an_overview_is_every_nth_pixel(tmp_path, monkeypatch, windowed):
    pixels = scene(tmp_path, (2, 300, 400), np.uint16)
    monkeypatch.setattr("infoseg_fast.data.base.OVERVIEW_BYTES", 400 * 2 * 2 * 30)
    images = open_set(str(tmp_path / "scene.tif"), "eval", options=ReadOptions(nodata=-1))
    images.windowed = windowed
    for side, step in ((100, 4), (133, 4), (400, 1), (7, 58)):
        found, valid = images.overview(0, side)
        assert np.array_equal(found, pixels[:, ::step, ::step]) and valid is None and max(found.shape) <= side


@pytest.mark.parametrize("side", [300, 1100])  # the second is read by threads
def test_workers_read_the_same_crops(tmp_path, side):
    scene(tmp_path, (3, side, 1000), np.uint16)
    images = for_training(open_set(str(tmp_path / "scene.tif"), "train"))
    batches = [
        torch.cat(
            [batch.images.int() for batch in crop_loader(images, 64, CropSampler(len(images), 16, 2, 0, 0, 6), n)]
        )
        for n in (0, 2)
    ]
    assert torch.equal(*batches)


def test_a_folder_of_many_small_images_is_left_as_it_is(folder):
    images = FolderSet(folder)
    assert for_training(images) is images and not images.windowed
    assert Image.open(folder / "images/im0.png").size == (32, 32)


@pytest.fixture
def regions_of_two_points(monkeypatch):
    """Regions of 2 x 2 points, of which 3 are kept."""
    monkeypatch.setattr("infoseg_fast.data.files.MANY_PIXELS", 1)
    monkeypatch.setattr("infoseg_fast.data.scenes.REGION_SIDES", (2,))
    monkeypatch.setattr("infoseg_fast.data.scenes.MIN_REGIONS", 1)
    monkeypatch.setattr("infoseg_fast.data.scenes.STRIDES", (64,))


@pytest.mark.usefixtures("regions_of_two_points")
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_crops_by_regions_are_the_crops_of_the_scene(tmp_path, monkeypatch, scale):
    scene(tmp_path, (2, 700, 600), np.uint16)
    monkeypatch.setattr("infoseg_fast.data.scenes.REGION_BYTES", 3 * 192**2 * 4)
    images = for_training(open_set(str(tmp_path / "scene.tif"), "train", scale=scale, options=ReadOptions(nodata=7)))
    assert images.windowed and images._kept == 3
    rng, every = np.random.default_rng(0), np.arange(len(images))
    y, x = rng.random(len(every)), rng.random(len(every))
    y[:20], x[20:40] = 0, 0.999
    for side in (32, 64):
        found, valid = images.crops(every, y, x, side)
        expected, mask = images.spread().crops(every, y, x, side)
        assert np.array_equal(found, expected) and np.array_equal(valid, mask)
    read = [images.source.read_window(0, *place) for place in ((0, 0, 9, 9), (600, 500, 100, 100))]
    assert all(pixels.flags.c_contiguous for pixels, _ in read)


@pytest.mark.usefixtures("regions_of_two_points")
def test_each_region_is_read_about_once_and_each_point_drawn_as_often(tmp_path, monkeypatch):
    scene(tmp_path, (1, 1100, 1000), np.uint16)
    monkeypatch.setattr("infoseg_fast.data.scenes.REGION_BYTES", 9 * (192 + 8) ** 2 * 2)
    images = for_training(open_set(str(tmp_path / "scene.tif"), "train"))
    orders = [images.epoch_order(3, epoch) for epoch in range(8)]
    number = len(set(images._region_of))
    assert number == 72
    for visit in (orders[:4], orders[4:]):
        assert (np.bincount(np.concatenate(visit), minlength=len(images)) == 4).all()
    assert not np.array_equal(orders[0], orders[4]) and not np.array_equal(orders[0], images.epoch_order(4, 0))
    assert np.array_equal(orders[2], images.epoch_order(3, 2)), "a resumed run draws the same"
    # Each batch mixes the regions that are kept.
    places = [{images._region_of[index] for index in batch} for batch in np.split(orders[1][:256], 8)]
    assert all(len(batch) > images._kept // 2 for batch in places)
    calls = []
    read = images.source.read_window
    monkeypatch.setattr(images.source, "read_window", lambda *window: calls.append(window) or read(*window))
    sampler = CropSampler(len(images), 32, 2, 3, 0, 4 * (len(images) // 32))
    for _ in crop_loader(images, 64, sampler, 0):
        pass
    assert number <= len(calls) < 1.5 * number + images._kept
    assert images.spread().epoch_order(0, 0) is None, "samples are from everywhere"


@pytest.mark.usefixtures("regions_of_two_points")
def test_an_image_that_cannot_be_read_reaches_the_loop_from_threads(tmp_path):
    scene(tmp_path, (1, 700, 600), np.uint16)
    images = for_training(open_set(str(tmp_path / "scene.tif"), "train"))
    path = tmp_path / "scene.tif"
    path.write_bytes(path.read_bytes()[:2000])
    batches = list(crop_loader(images, 64, CropSampler(len(images), 8, 2, 0, 0, 5), 2))
    assert all(isinstance(batch, DataError) and "scene.tif" in str(batch) for batch in batches) and len(batches) == 5


def test_threads_read_ahead_in_order_and_end_with_the_loop():
    read, given = [], iter(range(100))
    found = read_ahead(lambda x: read.append(x) or x * x, given, 3)
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
    found.close()
    assert len(read) <= 5 + 7 and next(given) < 20


@pytest.mark.usefixtures("regions_of_two_points")
def test_regions_without_data_are_left_out(tmp_path):
    pixels = np.ones((1, 1000, 700), np.uint16)
    pixels[:, np.add.outer(np.arange(1000), np.arange(700)) < 900] = 0
    write_tiff(tmp_path / "scene.tif", pixels, tile=(64, 64), compression="deflate")
    every = for_training(open_set(str(tmp_path / "scene.tif"), "train"))
    images = for_training(open_set(str(tmp_path / "scene.tif"), "train", options=ReadOptions(nodata=0)))
    assert len(every) == 16 * 11 and 0.3 < len(images) / len(every) < 0.7
    x = np.full(len(images), 0.5)
    shares = images.crops(np.arange(len(images)), x, x, 64)[1].mean(axis=(1, 2))
    assert (shares > 0).mean() > 0.8 and shares.mean() > 0.75
    assert sorted(images.epoch_order(0, 0).tolist()) != list(range(len(images)))
    empty = for_training(open_set(str(tmp_path / "scene.tif"), "train", options=ReadOptions(nodata=1)))
    assert len(empty) > 0


@pytest.mark.usefixtures("regions_of_two_points")
def test_a_run_on_a_scene_that_is_read_by_regions_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("infoseg_fast.data.crops.IN_MEMORY_BYTES", 0)
    scene(tmp_path, (2, 300, 400), np.uint16)
    how = SMALL | {"classes": 2, "overcluster": 1.0, "workers": 2, "log_every": 1}
    for name, parts in (("whole", (6,)), ("parts", (3, 6))):
        for steps in parts:
            isf.train(tmp_path / "scene.tif", tmp_path / name, resume=True, steps=steps, **how)
    a, b = (RunFolder(tmp_path / name).load()["labelling"]["weights"] for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
