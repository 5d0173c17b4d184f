"""Every example runs on small data, and does what it says."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TINY = {"width": 4, "dim": 8, "depth": 1, "batch_size": 4}


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_listed_and_tested():
    listed = (EXAMPLES / "README.md").read_text()
    here = Path(__file__).read_text()
    files = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(files) >= 7
    for path in files:
        assert f"]({path.name})" in listed
        assert path.stem == "own_recipe" or f'"{path.stem}' in here  # tests/test_own_recipe.py


def test_the_loss_drops_in():
    module = example("drop_in_loss")
    before, after = module.train(module.before, 8), module.train(module.after, 8)
    np.testing.assert_allclose(before, after, rtol=1e-4)
    assert after[-1] < after[0]


def test_a_backbone_of_ones_own_trains(capsys):
    labels = example("own_backbone").main(steps=3, side=32, number=4)
    assert labels.shape == (4, 32, 32) and labels.max() < 4
    assert capsys.readouterr().out.count("loss") == 2


def test_the_matcher_stands_in_for_scipy(capsys):
    example("matcher").main(problems=10, workers=6, tasks=9)
    one, batch, unmatched = capsys.readouterr().out.splitlines()
    for line in (one, batch):
        own, of_scipy = (float(word) for word in line.replace(",", "").split() if word[0].isdigit() and "." in word)
        assert own == pytest.approx(of_scipy)
    assert "3 workers have no task" in unmatched


def test_metrics_of_a_stream():
    scores = example("streaming_metrics").main(images=20, side=32)
    assert scores["num_pixels"] == 20 * 32 * 28
    low, high = scores["accuracy_interval"]
    assert low < scores["pixel_accuracy"] < high


@pytest.mark.long
def test_a_scene_becomes_a_map(tmp_path, capsys):
    pytest.importorskip("rasterio")
    written = example("geotiff_map").main(out=str(tmp_path), steps=2, crop=32, **TINY)
    assert written == tmp_path / "maps/scene.tif" and written.is_file()
    printed = capsys.readouterr().out
    assert "EPSG:32633, 256 x 256" in printed and "255" in printed and "scene.tif" in printed


def test_a_map_without_rasterio_is_one_line(monkeypatch, capsys):
    module = example("geotiff_map")
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    assert module.main() is None
    assert capsys.readouterr().out == "this example needs rasterio: pip install 'infoseg-fast[geo]'\n"


def test_the_notebook_runs_and_holds_no_outputs(capsys):
    notebook = json.loads((EXAMPLES / "pictures.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])
    names: dict = {}
    for cell in cells:
        cell = cell.replace("STEPS = 150", "STEPS = 3").replace("range(24)", "range(6)").replace("width=16", "width=4")
        exec(compile(cell, "pictures.ipynb", "exec"), names)
    assert names["STEPS"] == 3 and names["labels"].shape == (64, 64) and names["probs"].shape == (2, 6, 16, 16)
    assert "pixel accuracy" in capsys.readouterr().out
    assert len(names["plt"].get_fignums()) == 2
    names["plt"].close("all")
