"""The report shows what was segmented: images stretched by the run's limits, labels, names, shares."""

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import write_folder
from PIL import Image
from test_train import SMALL

import infoseg_fast as isf
from infoseg_fast.data import FolderSet, ReadOptions, open_set
from infoseg_fast.errors import DataError
from infoseg_fast.pictures import show


def pictures(page: str) -> list[np.ndarray]:
    """The pictures of the segmentations in a report."""
    found = re.findall(r'<img alt="" src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def write_scene(path: Path) -> np.ndarray:
    """150 x 200 pixels of 12-bit values in 5 bands, 0 in the first 20 columns."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 4096, (5, 30, 40)).repeat(5, 1).repeat(5, 2).astype(np.uint16)
    pixels[:, :, :20] = 0
    tifffile.imwrite(
        path, pixels, photometric="minisblack", planarconfig="separate", tile=(64, 64), compression="deflate"
    )
    return pixels


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene, and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("scene")
    pixels = write_scene(folder / "scene.tif")
    torch.manual_seed(0)
    assert isf.train(folder / "scene.tif", folder / "run", **SMALL, steps=2, classes=3, nodata=0, rgb=(5, 1, 2)) is None
    return folder, pixels


def test_the_report_of_a_scene_has_its_overview_its_labels_and_their_shares(scene):
    folder, pixels = scene
    page = (folder / "run/report.html").read_text()
    picture, labels = pictures(page)[:2]
    assert picture.shape == labels.shape == (150, 200, 3)
    scaling = isf.load(folder / "run").labelling.data.scaling
    expected = (scaling.to_float(pixels)[[4, 0, 1]] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(picture, expected)
    assert (labels[:, :20] == 0).all() and labels[:, 20:].any(axis=2).all(), "black where there is no data"
    assert "<h2>Scenes</h2>" in page and len(pictures(page)) == 2 * (1 + 12) + 4
    shares = [float(x) for x in re.findall(r'cluster \d</td><td class="number">([\d.]+)<', page)]
    colours = [np.uint8(list(bytes.fromhex(x))) for x in re.findall(r"background:#(\w{6})", page)]
    counted = [(labels == colour).all(axis=2).sum() / (150 * 180) for colour in colours]
    assert np.allclose(shares, counted, atol=6e-4) and sum(shares) == pytest.approx(1, abs=2e-3)


def test_windows_give_the_picture_of_the_whole_scene(scene, monkeypatch):
    folder, _ = scene
    segmenter = isf.load(folder / "run")
    images = open_set(str(folder / "scene.tif"), "all", options=ReadOptions(nodata=0))
    whole = show(segmenter, images, 0)
    assert whole.step == 1 and (whole.labels[:, :20] == 255).all() and (whole.labels[:, 20:] < 3).all()
    assert np.array_equal(whole.labels, segmenter.segment_file(folder / "scene.tif")), "as predict has it"
    monkeypatch.setattr("infoseg_fast.tile_labels.TILE", 64)
    for windowed in (True, False):
        images.windowed = windowed
        found = show(segmenter, images, 0)
        assert np.array_equal(found.picture, whole.picture) and np.array_equal(found.labels, whole.labels)
        monkeypatch.setattr("infoseg_fast.pictures.SIDE", 60)
        small = show(segmenter, images, 0)
        assert small.step == 4 and np.array_equal(small.picture, whole.picture[::4, ::4])
        assert np.array_equal(small.labels, found.labels[::4, ::4])
        monkeypatch.setattr("infoseg_fast.pictures.SIDE", 512)
    monkeypatch.setattr("infoseg_fast.pictures.LARGEST_SEGMENTED", 1000)
    alone = show(segmenter, images, 0)
    assert alone.labels is None and np.array_equal(alone.picture[:, 20:], whole.picture[:, 20:])


@pytest.mark.parametrize("rgb", [(0, 1, 2), (1, 2, 6), (1, 2)])
def test_wrong_channels_of_the_report_are_named(tmp_path, rgb):
    write_scene(tmp_path / "scene.tif")
    with pytest.raises(DataError, match="--rgb takes 1 or 3 channels from 1 to 5"):
        isf.train(tmp_path / "scene.tif", tmp_path / "run", **SMALL, steps=2, classes=3, rgb=rgb)
    assert not (tmp_path / "run").exists()


def test_class_names_shares_and_names_that_are_not_utf8(tmp_path):
    root = write_folder(tmp_path / "data", number=5, side=40)
    (root / "classes.txt").write_text("<water>\ncity\n", encoding="utf-8")
    for folder in ("images", "labels"):
        names = {path.name: path for path in (root / folder).iterdir()}
        os.rename(os.fsencode(names["im0.png"]), os.fsencode(root / folder) + b"/\xff\xe9\n<b>.png")
    assert "\udcff\udce9\n<b>" in FolderSet(root).stems
    isf.train(root, tmp_path / "run", **SMALL, steps=2)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert r"\xff\xe9\n&lt;b&gt;" in page and "<b>" not in page
    assert page.count("&lt;water&gt;") == 2 and "share of the pixels shown" in page


def test_the_example_of_the_page_on_data_runs(tmp_path, monkeypatch, capsys):
    write_scene(tmp_path / "scene.tif")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parent.parent / "docs/data.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    assert "Scaling(low=(" in capsys.readouterr().out and (tmp_path / "run/report.html").is_file()
    isf.train("scene.tif", "run", resume=True, steps=21)
    assert isf.load("run").labelling.data.reading.bands == (4, 3, 2)
