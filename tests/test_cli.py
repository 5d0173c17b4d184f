"""The command line: what it prints, what it writes, and its exit status."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, write_folder
from PIL import Image

from infoseg_fast import load
from infoseg_fast.cli import main, parser
from infoseg_fast.errors import DataError

TRAIN = shlex.split("--crop 32 --width 8 --dim 16 --batch-size 4 --steps 6 --checkpoint-every 3 --eval-every 0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    data = write_folder(root / "data", number=8, side=40)
    assert main(["train", "--data", str(data), "--out", str(root / "run"), *TRAIN]) == 0
    return root


def test_eval_prints_json_alone(trained, capfd):
    assert call("eval", trained / "run", "--data", trained / "data", "--split", "all", "--json") == 0
    scores = json.loads(capfd.readouterr().out)
    names = "pixel_accuracy mean_iou nmi majority_accuracy class_shares iou mapping num_pixels confusion"
    assert set(scores) == set(names.split())
    assert scores["num_pixels"] == 8 * 40 * 40


def test_eval_prints_the_constant_predictor_beside(trained, capsys):
    assert call("eval", trained / "run", "--data", trained / "data", "--checkpoint", "best_loss") == 0
    assert "constant predictor" in capsys.readouterr().out


def test_eval_agrees_with_predict_pixel_by_pixel(trained, tmp_path, capsys):
    assert call("eval", trained / "run", "--data", trained / "data", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert call("predict", trained / "run", trained / "data/images", "--out", tmp_path / "out", "--match") == 0
    hits = total = 0
    for path in sorted((trained / "data/labels").iterdir()):
        found, truth = np.asarray(Image.open(tmp_path / "out" / path.name)), np.asarray(Image.open(path))
        hits, total = hits + int((found == truth).sum()), total + truth.size
    assert abs(hits / total - scores["pixel_accuracy"]) < 1e-3


def test_predict_keeps_sizes_and_relative_paths(trained, tmp_path):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 51, 3), dtype=np.uint8)).save(source / "sub/a.jpg")
    Image.fromarray(rng.integers(0, 256, (3, 2), dtype=np.uint8)).save(source / "grey.bmp")
    assert call("predict", trained / "run", source, "--out", tmp_path / "out", "--overlay") == 0
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"sub/a.png", "sub/a.overlay.png", "grey.png", "grey.overlay.png"}
    label = Image.open(tmp_path / "out/sub/a.png")
    assert label.mode == "L" and label.size == (51, 30) and np.asarray(label).max() < 2
    assert Image.open(tmp_path / "out/sub/a.overlay.png").mode == "RGB"
    assert Image.open(tmp_path / "out/grey.png").size == (2, 3)
    assert call("predict", trained / "run", source / "grey.bmp", "--out", tmp_path / "one") == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["grey.png"]


def test_prepare_writes_a_folder_that_trains(tmp_path, capsys):
    assert call("prepare", "landcover-4", "--out", tmp_path / "tiles") == 0
    assert len(list((tmp_path / "tiles/images").iterdir())) == 472
    assert (tmp_path / "tiles/classes.txt").read_text().splitlines()[0] == "water"
    out = tmp_path / "run"
    assert call("train", "--data", tmp_path / "tiles", "--out", out, *TRAIN[2:], "--steps", 2) == 0
    assert json.loads((out / "config.json").read_text())["config"]["crop"] == 64
    assert call("prepare", "landcover-4", "--out", tmp_path / "tiles") == 2


def test_env_tells_versions_and_every_backend(capsys):
    assert call("env") == 0
    told = capsys.readouterr().out
    assert all(
        word in told for word in ("torch", "C++ extension", "backend reference", "backend cpp", "backend triton")
    )


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["predict"], ["prepare"], ["env"]])
def test_help_is_there(command, capsys):
    assert call(*command, "--help") == 0
    assert "usage: infoseg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--out", "{tmp}/r"], "--data"),
        (["train", "--data", "{tmp}/none", "--out", "{tmp}/r"], "{tmp}/none"),
        (["train", "--data", "landcover"], "--out"),
        (["train", "--data", "landcover", "--out", "{tmp}/r", "--steps", "many"], "--steps"),
        (["train", "--data", "landcover", "--out", "{tmp}/r", "--smooth", "much"], "a whole number or auto"),
        (["train", "--data", "landcover", "--out", "{tmp}/r", "--recipe", "mine"], "--recipe"),
        (["train", "--data", "landcover", "--out", "{tmp}/r", "--batch-size", "1"], "--batch-size"),
        (["train", "--data", "landcover", "--out", "{tmp}/r", "--device", "cuda"], "--device cuda"),
        (["train", "--data", "landcover", "--out", "{run}"], "exists"),
        (["eval", "{tmp}/none", "--data", "landcover"], "{tmp}/none"),
        (["eval", "{run}", "--data", "{tmp}/none"], "{tmp}/none"),
        (["eval", "{run}", "--data", "{unlabelled}"], "no ground truth"),
        (["eval", "{run}", "--data", "landcover", "--split", "test"], "--split"),
        (["eval", "{run}", "--data", "landcover", "--checkpoint", "best"], "--checkpoint"),
        (["predict", "{run}", "{tmp}/none.png", "--out", "{tmp}/o"], "{tmp}/none.png"),
        (["predict", "{run}", "{tmp}", "--out", "{tmp}/o"], "no file in a format"),
        (["predict", "{run}", "{broken}", "--out", "{tmp}/o"], "bad.png"),
        (["predict", "{run}", "{four}", "--out", "{tmp}/o"], "4 channels"),
        (["export", "{run}", "--format", "torchscript", "--out", "{tmp}"], "is a folder"),
        (["export", "{run}", "--format", "torchscript", "--out", "{broken}/bad.png/x.pt"], "cannot be written"),
        (["predict", "{run}", "", "--out", "{tmp}/o"], "takes a path"),
        (["train", "--data", "x" * 300, "--out", "{tmp}/o"], "too long"),
        (["prepare", "imagenet", "--out", "{tmp}/o"], "imagenet"),
        (["fly"], "fly"),
    ],
)
def test_an_error_is_one_line_and_status_2_and_nothing_is_written(
    trained, tmp_path, arguments, told, capsys, monkeypatch
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    inputs = tmp_path / "inputs"
    unlabelled = write_folder(inputs / "unlabelled", number=2, labels=False)
    (inputs / "broken").mkdir()
    (inputs / "broken/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n oh no")
    (inputs / "four").mkdir()
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(inputs / "four/x.png")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    places = {"tmp": scratch, "run": trained / "run", "unlabelled": unlabelled}
    places |= {name: inputs / name for name in ("broken", "four")}
    capsys.readouterr()
    assert call(*(argument.format(**places) for argument in arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("infoseg") and told.format(**places) in printed, printed
    assert not list(scratch.iterdir())


def test_match_needs_an_evaluation(tmp_path, capsys):
    data = write_folder(tmp_path / "data", labels=False)
    assert call("train", "--data", data, "--out", tmp_path / "run", "--classes", 2, *TRAIN) == 0
    assert call("predict", tmp_path / "run", data / "images", "--out", tmp_path / "out", "--match") == 2
    assert "infoseg eval" in capsys.readouterr().err and not Path(tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"mapping": None},
        {"mapping": [0]},
        {"mapping": [0, 1, 0]},
        {"mapping": [0, "1"]},
        {"mapping": [0, 300]},
        {"mapping": [0, -7]},
        {"mapping": {"0": 1}},
        {"classes": [1, 2]},
        {"classes": "ab"},
        {"num_pixels": "7"},
        {"step": "2"},
        {"iou": 1},
        {"split": float("nan")},
        None,
    ],
)
def test_an_edited_evaluation_is_none(trained, tmp_path, capsys, change):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    file = run / "evaluation.json"
    record = json.loads(file.read_text())
    file.write_text("[" if change is None else json.dumps({"last": record["last"] | change, "best_loss": change}))
    command = "predict", run, trained / "data/images/im0.png", "--out", tmp_path / "out"
    capsys.readouterr()
    assert call(*command, "--match") == 2 and not (tmp_path / "out").exists()
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "evaluation.json" in printed and "infoseg eval" in printed
    assert call(*command) == 0
    assert call("eval", run, "--data", trained / "data", "--json") == 0
    assert json.loads(file.read_text()) == {"last": record["last"]}


def test_scores_that_cannot_be_kept_are_printed(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").mkdir()
    assert call("eval", run, "--data", trained / "data", "--json") == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_pixels"] and "evaluation.json could not be written" in printed.err


def test_match_needs_the_clusters_of_the_training(trained, tmp_path, capsys):
    command = "predict", trained / "run", trained / "data/images", "--out", tmp_path / "out", "--match", "--classes"
    assert call(*command, 3) == 2
    assert "--match needs the 2 clusters" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_a_command_that_uses_a_run_does_not_load_the_training(trained, tmp_path, command):
    """In a process of its own, since other tests have imported everything."""
    run, data = str(trained / "run"), trained / "data"
    arguments = {
        "eval": [run, "--data", str(data)],
        "predict": [run, str(data / "images/im0.png"), "--out", str(tmp_path / "out")],
        "export": [run, "--format", "torchscript", "--out", str(tmp_path / "model.pt")],
    }[command]
    code = f"""
import sys
from infoseg_fast.cli import main
assert main({[command, *arguments]!r}) == 0
later = ("matplotlib", "torch.utils.tensorboard", "infoseg_fast.report", "torchmetrics", "pytorch_lightning")
loaded = {{name for name in sys.modules if name in later or name.startswith("infoseg_fast.compat")}}
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_negative_numbers_are_values():
    """argparse takes -9999 for a value, but -3.4e+38, the no-data value of many rasters, for an option."""
    given = parser().parse_args(
        ["train", "--out", "run", "--nodata", "-3.4028234663852886e+38", "--local-index", "-2,-1"]
    )
    assert given.nodata == -3.4028234663852886e38 and given.local_index == (-2, -1)


def test_a_baseline_of_0_classes_is_refused(trained, capsys):
    assert call("baseline", "constant", "--data", trained / "data", "--classes", 0) == 2
    assert "--classes must be from 2 to 256" in capsys.readouterr().err


def test_a_baseline_without_a_labelled_pixel_asks_for_the_classes(tmp_path, capsys):
    write_folder(tmp_path / "data")
    for file in (tmp_path / "data/labels").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(file)
    assert call("baseline", "constant", "--data", tmp_path / "data") == 2
    assert "name fewer than two classes; give the number with --classes" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_segmenter_for_a_missing_gpu_is_refused(trained):
    with pytest.raises(DataError, match="torch sees no CUDA device here"):
        load(trained / "run", device="cuda")


def test_closed_and_full_streams(tmp_path):
    full = "<stdout> could not be written: No space"
    for arguments, status, told in (("env >&-", 0, ""), ("env >/dev/full", 2, full), ("--help >/dev/full", 2, full)):
        done = subprocess.run(
            f"{sys.executable} -m infoseg_fast {arguments}", shell=True, capture_output=True, text=True
        )
        assert done.returncode == status and told in done.stderr and "Traceback" not in done.stderr


def test_a_number_of_ranks_without_torchrun_is_one_line(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "data")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for size in ("2", "many"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert main(["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err.strip()
        assert "WORLD_SIZE" in said and "\n" not in said


def test_the_version_is_printed(capsys):
    import infoseg_fast

    assert call("--version") == 0
    assert capsys.readouterr().out == f"infoseg {infoseg_fast.__version__}\n"
