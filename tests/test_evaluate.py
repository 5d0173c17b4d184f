"""Scores of a set: strict JSON, and text where a number does not exist."""

import json
import os
import shlex

import numpy as np
import pytest
import tifffile
import torch
from conftest import write_folder
from PIL import Image

import infoseg_fast as isf
from infoseg_fast import tile_labels
from infoseg_fast.cli import main
from infoseg_fast.data import files as files_module
from infoseg_fast.data import open_set
from infoseg_fast.data.files import FileSet
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.scores import evaluate as evaluate_module
from infoseg_fast.scores.evaluate import as_text, evaluate, without_nan


def strict(text: str):
    """Parse JSON; NaN and Infinity raise."""

    def refuse(name: str):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def scored(folder, num_clusters, num_classes=None):
    network = isf.InfoSegNet(width=4, dim=8, num_classes=num_clusters).eval()
    labelling = Labelling(network, {}, DataInfo(3, num_clusters, None, [0.5] * 3, [0.3] * 3))
    images = open_set(str(folder), "all", num_classes=num_classes)
    return evaluate(isf.Segmenter(labelling), images, torch.device("cpu")), images


@pytest.mark.parametrize("scale", [1.0, 0.5, 1.3])
def test_a_scene_is_scored_by_windows(scale, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    pixels = rng.random((150, 130, 3), np.float32)
    pixels[:40, 50:] = np.nan
    tifffile.imwrite(tmp_path / "images/x.tif", pixels, tile=(32, 32), photometric="rgb")
    Image.fromarray(rng.integers(0, 3, (150, 130), np.uint8)).save(tmp_path / "labels/x.png")
    monkeypatch.setattr(files_module, "MANY_PIXELS", 2000)  # reads by windows
    network = isf.InfoSegNet(width=4, dim=8, num_classes=5).eval()
    with torch.no_grad():  # centred features, so that several classes are in use
        mean = network(torch.rand(4, 3, 64, 64))[0].mean(dim=(0, 2, 3))
        network.local_projection.bias.copy_(-network.local_projection.weight[:, :, 0, 0] @ mean)
    images = open_set(str(tmp_path), "all", scale=scale)
    labelling = Labelling(network, {}, DataInfo(3, 3, None, [0.5] * 3, [0.3] * 3, images.scaling, scale))
    given = isf.Segmenter(labelling), images, torch.device("cpu")
    expected = evaluate(*given)
    labels = given[0].segment_file(tmp_path / "images/x.tif")
    counts = isf.confusion_matrix(labels, np.where(labels == 255, 255, images.label(0)), 256, 3)
    assert expected["confusion"] == counts[:5].tolist(), "those of the label map"
    assert expected["num_pixels"] == 150 * 130 - 40 * 80
    assert np.count_nonzero(np.sum(expected["confusion"], axis=1)) > 1
    monkeypatch.setattr(evaluate_module, "SCENE_PIXELS", 1000)
    monkeypatch.setattr(tile_labels, "TILE", 64)
    monkeypatch.setattr(FileSet, "read", None)  # not as a whole
    assert evaluate(*given) == expected


def test_nan_becomes_none_at_any_depth():
    nan = float("nan")
    scores = {"a": nan, "b": [1, nan, {"c": nan}], "interval": (nan, 0.5), "name": "nan", "counts": [[2**60]]}
    assert without_nan(scores) == {
        "a": None, "b": [1, None, {"c": None}], "interval": [None, 0.5], "name": "nan", "counts": [[2**60]],
    }  # fmt: skip


def test_a_class_that_occurs_nowhere_is_null_in_json_and_a_dash_in_text(tmp_path):
    folder = write_folder(tmp_path / "data", number=2)
    (folder / "classes.txt").write_text("one\ntwo\nnowhere\n")
    scores, _ = scored(folder, 2)
    assert scores["iou"][2] is None and strict(json.dumps(scores)) == scores
    assert as_text(scores, ["one", "two", "nowhere"]).splitlines()[-1].split()[:5] == [
        "nowhere",
        "share",
        "0.000",
        "IoU",
        "-",
    ]


def test_a_set_whose_pixels_are_all_ignored_has_no_scores(tmp_path):
    folder = write_folder(tmp_path / "data", number=2)
    for path in (folder / "labels").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    scores, images = scored(folder, 3, 3)
    assert scores["num_pixels"] == 0 and scores["pixel_accuracy"] is None and scores["iou"] == [None] * 3
    assert strict(json.dumps(scores)) == scores and "no pixel has ground truth" in as_text(scores, images.classes)


def test_the_command_line_prints_and_keeps_strict_json(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", number=4)
    (folder / "classes.txt").write_text("one\ntwo\nnowhere\n")
    sizes = shlex.split("--classes 3 --steps 2 --batch-size 2 --crop 32 --width 4 --dim 8")
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), *sizes]) == 0
    kept = strict((tmp_path / "run" / "evaluation.json").read_text())
    assert kept["last"]["num_pixels"] == 4 * 32 * 32
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--data", str(folder), "--json"]) == 0
    assert strict(capsys.readouterr().out)["num_pixels"] == 4 * 32 * 32
    assert main(["baseline", "constant", "--data", str(folder), "--json"]) == 0
    scores = strict(capsys.readouterr().out)
    assert scores["iou"][2] is None and scores["num_pixels"] == 4 * 32 * 32


def test_an_evaluation_of_other_data_names_its_classes_and_holds_for_its_step(tmp_path):
    folder, other = (write_folder(tmp_path / name, number=4, labels=name == "other") for name in ("data", "other"))
    (folder / "classes.txt").write_text("one\ntwo\nthree\n")
    (other / "classes.txt").write_text("two\none\n")
    run, sizes = str(tmp_path / "run"), shlex.split("--batch-size 2 --crop 32 --width 4 --dim 8")
    assert main(["train", "--data", str(folder), "--out", run, "--steps", "2", *sizes]) == 0
    assert main(["eval", run, "--data", str(other)]) == 0
    assert isf.load(run).class_names == ["two", "one"]
    (other / "classes.txt").write_text("".join(f"other {k}\n" for k in range(5)))
    assert main(["eval", run, "--data", str(other)]) == 0
    (tmp_path / "run/report.html").unlink()
    assert main(["train", "--out", run, "--resume"]) == 0
    assert "</span>other 4<" in (tmp_path / "run/report.html").read_text()
    assert main(["train", "--out", run, "--resume", "--steps", "3"]) == 0
    assert isf.load(run).class_names is None
    assert "Scores on" not in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("change", [lambda image: image.astype(np.uint16), lambda image: image[..., 0]])
def test_images_of_another_depth_or_of_other_channels_are_not_scored(tmp_path, capsys, change):
    folder = write_folder(tmp_path / "data", number=4)
    run, sizes = str(tmp_path / "run"), shlex.split("--steps 2 --batch-size 2 --crop 32 --width 4 --dim 8")
    assert main(["train", "--data", str(folder), "--out", run, *sizes]) == 0
    for path in (folder / "images").glob("im[01].png"):
        image = np.asarray(Image.open(path))
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), change(image))
    (folder / "train.txt").write_text("im2\nim3\n")
    (folder / "eval.txt").write_text("im0\nim1\n")
    for command in (["eval", run], ["train", "--out", run + "2", *sizes]):
        capsys.readouterr()
        assert main([*command, "--data", str(folder)]) == 2
        printed = capsys.readouterr().err
        assert "of uint8" in printed and ("3 channels of uint16" in printed or "1 channels" in printed)
        assert printed.count("\n") == 1 and not os.path.exists(run + "2")
