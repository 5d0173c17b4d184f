"""Training: it learns, it resumes to the same bits, and what is on disk is always whole."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import needs_extension, write_folder
from PIL import Image

import infoseg_fast as isf
from infoseg_fast.cli import run as run_cli
from infoseg_fast.errors import DataError
from infoseg_fast.model import position_mask
from infoseg_fast.ops import dispatch
from infoseg_fast.run_folder import LAYOUT, RunFolder
from infoseg_fast.train import train

SMALL = {"crop": 32, "width": 8, "dim": 16, "batch_size": 4, "log_every": 2, "checkpoint_every": 4, "eval_every": 0}
SMALL |= {"precision": "float32"}  # "auto" may choose otherwise in another run


def rows(run: Path) -> list[dict]:
    return RunFolder(run).read_metrics()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(run)]


def weights(run: Path, name: str = "last") -> dict:
    content = RunFolder(run).load(name)
    refinement = content["labelling"]["refinement"] or {}
    numbers = {key: x for key, x in refinement.items() if isinstance(x, torch.Tensor)}
    return content["recipe"] | content["labelling"]["weights"] | numbers


def checkpoint_file(run: Path, name: str = "last") -> Path:
    return run / "checkpoints" / f"{name}.pt"


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def gain_of_a_resumed_run(how: dict, out: Path) -> float:
    """Check that a run in parts has the bits of a whole one. Returns the fall of its loss in 60
    steps.
    """
    train(out=out / "whole", **how)
    train(out=out / "parts", **how | {"steps": 3})
    train(None, out / "parts", resume=True, steps=how["steps"])
    assert same_weights(weights(out / "whole"), weights(out / "parts"))
    train(None, out / "whole", resume=True, steps=60)
    found = losses(out / "whole")
    return found[0][1] - found[-1][1]


@pytest.fixture
def data(tmp_path) -> str:
    return str(write_folder(tmp_path / "data", number=10, side=40))


def test_a_run_holds_all_that_is_promised(data, tmp_path):
    run = tmp_path / "run"
    scores = train(data, run, **SMALL | {"steps": 10, "eval_every": 5})
    assert {"config.json", "metrics.jsonl", "checkpoints", "tensorboard", "report.html"} <= set(os.listdir(run))
    assert sorted(os.listdir(run / "checkpoints")) == ["best_loss.pt", "last.pt", "previous.pt"]
    assert [row["step"] for row in rows(run)] == [2, 4, 5, 6, 8, 10]
    assert [row["step"] for row in rows(run) if "pixel_accuracy" in row] == [5, 10]
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["classes"] == 2 and config["config"]["estimator"] == "infonce"
    assert config["environment"]["versions"]["torch"] == metadata.version("torch")
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == 10
    assert any(file.name.startswith("events") for file in (run / "tensorboard").iterdir())
    segmenter = isf.load(run)
    assert segmenter.mapping == scores["mapping"]
    assert segmenter.segment(torch.rand(2, 3, 50, 41)).shape == (2, 50, 41)
    page = (run / "report.html").read_text()
    # Curves, a triple for each image, the partition score, and an image with maps of 2 and 4
    # classes.
    assert page.count("<img") == 1 + 3 * 10 + 1 + 3 and "http" not in page


def test_two_textures_are_told_apart(tmp_path):
    """200 steps on a set whose answer is known reach an accuracy that chance (.5 to .6 for two
    classes) does not.
    """
    data = write_folder(tmp_path / "data", number=24, side=48)
    how = SMALL | {"data": str(data), "steps": 200, "width": 12, "dim": 32, "batch_size": 8, "checkpoint_every": 200}
    scores = train(out=tmp_path / "run", **how)
    assert scores["majority_accuracy"] < 0.65
    assert scores["pixel_accuracy"] > 0.7 and scores["nmi"] > 0.2


@needs_extension
def test_50_steps_of_the_default_recipe_give_the_references_losses_and_segmentation(tmp_path, monkeypatch):
    data = write_folder(tmp_path / "data", number=8, side=32)
    how = SMALL | {"data": str(data), "steps": 50, "log_every": 1, "checkpoint_every": 50, "lr": 3e-4}

    def run(name, references, disturbed=None):
        with monkeypatch.context() as patch:
            if references:
                patch.setitem(dispatch.PREFERENCE, "cpu", ("reference",))
            if disturbed is not None:
                patch.setattr("infoseg_fast.recipe.network.InfoSegNet", disturbing(disturbed))
            train(out=tmp_path / name, **how)
            labels = isf.load(tmp_path / name).segment(images)
        return torch.tensor([loss for _, loss in losses(tmp_path / name)], dtype=torch.float64), labels

    def disturbing(seed):
        def made(**sizes):
            net, noise = isf.InfoSegNet(**sizes), torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for x in net.parameters():
                    x *= 1 + 1e-7 * torch.randn(x.shape, generator=noise)
            return net

        return made

    images = torch.rand(4, 3, 32, 32)
    found, labels = run("cpp", False)
    expected, expected_labels = run("reference", True)
    assert found[0] - found[-1] > 0.01  # it learns something
    # How far a last bit carries: the reference against itself.
    runs = torch.stack([run(f"disturbed {seed}", True, seed)[0] for seed in range(2)])
    growth = (runs - expected).abs().amax(dim=0).cummax(dim=0).values
    # The logarithms of determinants carry 1 / r^2 = 100 times the rounding of the moments, and have
    # weight 10.
    assert ((found - expected).abs() <= 10 * growth + 2e-4).all()
    assert (labels == expected_labels).float().mean() > 0.995


def test_a_killed_run_goes_on_to_the_same_bits(data, tmp_path):
    """Ten kills at random moments are a long test (test_survive.py)."""
    how = SMALL | {"data": data, "steps": 60, "checkpoint_every": 5, "workers": 2}
    train(out=tmp_path / "whole", **how)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    command = [sys.executable, "-m", "infoseg_fast", "train", "--resume", "--out", str(tmp_path / "killed"), *options]
    metrics = tmp_path / "killed/metrics.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") * 2 >= 23):  # steps that are logged
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with metrics.open("a") as file:
        file.write('{"step": 24, "lo')  # a torn last line, as a power cut leaves
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert same_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert same_weights(weights(tmp_path / "killed", "best_loss"), weights(tmp_path / "whole", "best_loss"))


def test_a_finished_run_says_so_and_more_steps_go_further(data, tmp_path, capsys):
    how = SMALL | {"data": data, "steps": 4}
    train(out=tmp_path / "run", **how)
    before = (tmp_path / "run/report.html").stat().st_mtime_ns
    train(out=tmp_path / "run", resume=True, **how)
    assert "finished" in capsys.readouterr().out
    assert (tmp_path / "run/report.html").stat().st_mtime_ns == before
    train(out=tmp_path / "run", resume=True, **how | {"steps": 6})
    assert losses(tmp_path / "run")[-1][0] == 6


def test_the_seed_decides(data, tmp_path):
    how = SMALL | {"data": data, "steps": 4}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(out=tmp_path / name, **how | {"seed": seed})
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_images_without_labels_train_too(tmp_path):
    data = write_folder(tmp_path / "data", labels=False)
    with pytest.raises(DataError, match="--classes is required"):
        train(str(data), tmp_path / "run", **SMALL, steps=4)
    assert not (tmp_path / "run").exists()
    assert train(str(data), tmp_path / "run", **SMALL, steps=4, classes=3) is None
    assert isf.load(tmp_path / "run").num_clusters == 3


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_recipes(tmp_path, channels, recipe):
    rng = np.random.default_rng(0)
    (tmp_path / "data/images").mkdir(parents=True)
    for i in range(6):
        pixels = rng.integers(0, 256, (37, 45, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(tmp_path / f"data/images/{i}.png")
    how = SMALL | {
        "data": str(tmp_path / "data"),
        "classes": 3,
        "steps": 3,
        "jitter": 0.2,
        "recipe": recipe,
        "scale": 0.9,
    }
    train(out=tmp_path / "run", **how)
    assert isf.load(tmp_path / "run").segment(torch.rand(1, channels, 37, 45)).shape == (1, 37, 45)


def test_epochs_are_passes_over_the_images(data, tmp_path):
    train(data, tmp_path / "run", **SMALL, epochs=2)
    assert losses(tmp_path / "run")[-1][0] == 6  # 10 images: batches of 4, 4 and 2
    (tmp_path / "run/report.html").unlink()
    train(None, tmp_path / "run", resume=True)
    train(None, tmp_path / "run", resume=True, epochs=3)
    assert losses(tmp_path / "run")[-1][0] == 9


def test_the_command_of_a_run_resumes_it_too(data, tmp_path):
    how = SMALL | {"steps": 2, "inputs": "grey", "position": "auto"}
    train(data, tmp_path / "run", **how)
    train(data, tmp_path / "run", **how, resume=True)


@pytest.mark.parametrize("recipe", ["paper", "iic"])
def test_every_accepted_seed_trains(data, tmp_path, recipe):
    train(data, tmp_path / "run", **SMALL | {"steps": 1, "seed": 2**63 - 1, "recipe": recipe, "jitter": 0.1})


def edited(run: Path, change: dict, without: tuple[str, ...] = ()) -> None:
    record = json.loads((run / "config.json").read_text())
    record["config"] |= change
    (run / "config.json").write_text(json.dumps({key: x for key, x in record.items() if key not in without}))


def test_files_of_a_run_that_were_edited_are_named_or_repaired(data, tmp_path):
    run = tmp_path / "run"
    train(data, run, **SMALL, steps=4)
    whole = (run / "config.json").read_text()
    for change, without, told in (
        ({"steps": "many"}, (), "config.json: --steps takes a whole number, not 'many'"),
        ({"lr": None}, (), "config.json: --lr is missing"),
        ({"estimator": "none"}, (), "config.json: --estimator must be jsd or infonce"),
        ({"depth": 9}, (), "config.json: --depth must be at most 5"),
        ({"zzz": 1}, (), "config.json: there is no setting 'zzz'"),
        ({}, ("data",), "config.json has no 'data'"),
    ):
        edited(run, change, without)
        with pytest.raises(DataError, match=told):
            train(None, run, resume=True, steps=6)
        (run / "config.json").write_text(whole)
    kept = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b'[1]\n{"step": "x"}\n\xff\n{"step": 1}\n7\n' + kept)
    (run / "evaluation.json").write_text("[]")
    train(None, run, resume=True, steps=6)
    assert (run / "metrics.jsonl").read_bytes().startswith(kept) and len(rows(run)) == 3
    (run / "metrics.jsonl").unlink()
    (run / "report.html").unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl has no line"):
        train(None, run, resume=True)


def test_without_the_last_checkpoint_the_previous_one_is_used(data, tmp_path, capsys, caplog):
    train(data, tmp_path / "run", **SMALL, steps=6)
    checkpoint_file(tmp_path / "run").unlink()
    train(None, tmp_path / "run", resume=True)
    assert "at step 4" in capsys.readouterr().out and "using the one before" in caplog.text


def test_empty_folders_take_a_run_and_folders_of_images_do_not(data, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    train(data, tmp_path / "link", **SMALL, steps=1)
    assert (tmp_path / "empty/report.html").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train(data, ".", **SMALL, steps=1)
    for given, out in ((data, f"{data}/images/run"), (f"{data}/images", f"{data}/images/sub/run")):
        with pytest.raises(DataError, match="lies among the images"):
            train(given, out, **SMALL, steps=1, classes=2)
        assert not Path(out).parent.joinpath("run").exists()


def test_of_two_runs_that_begin_together_one_is_refused(data, tmp_path, monkeypatch):
    module = sys.modules["infoseg_fast.train"]
    statistics = module.data_info

    def other(*arguments):
        monkeypatch.setattr(module, "data_info", statistics)
        train(data, tmp_path / "run", **SMALL, steps=1)
        return statistics(*arguments)

    monkeypatch.setattr(module, "data_info", other)
    with pytest.raises(DataError, match="another process began a run there"):
        train(data, tmp_path / "run", **SMALL, steps=2)
    assert losses(tmp_path / "run")[-1][0] == 1


def test_images_smaller_than_the_crop_are_padded_and_that_is_said(data, tmp_path, caplog):
    train(data, tmp_path / "run", **SMALL | {"steps": 2, "crop": 64})
    assert any("smaller than the crop of 64 px" in record.message for record in caplog.records)


def test_positions_with_any_padding_do_not_count():
    valid = torch.zeros(1, 34, 8, dtype=torch.bool)
    valid[:, :33, :4] = True
    found = position_mask(valid, torch.rand(1, 3, 34, 8))
    expected = torch.zeros(1, 9, 8, dtype=torch.bool)
    expected[:, :8, 0] = True
    assert torch.equal(found, expected)
    without_mask = position_mask(None, torch.rand(1, 3, 34, 8))
    expected[:, :8, :2] = True
    assert torch.equal(without_mask, expected)
    assert position_mask(None, torch.rand(1, 3, 36, 32)) is None


def test_a_full_disk_leaves_the_state_valid(data, tmp_path):
    """The limit on a file's size stands for the disk: the write of a checkpoint fails half way, as
    it does there.
    """
    how = SMALL | {"data": data, "steps": 4}
    run = tmp_path / "run"
    train(out=run, **how)
    saved, size = weights(run), checkpoint_file(run).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(DataError, match=r"last\.pt could not be written.*unchanged"):
            train(None, run, resume=True, steps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same_weights(weights(run), saved)
    assert not any(path.name.endswith(".tmp") for path in (run / "checkpoints").iterdir())
    train(None, run, resume=True, steps=8)
    train(out=tmp_path / "whole", **how | {"steps": 8})
    assert same_weights(weights(run), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": 1}, "--classes must be at least 2, not 1"),
        ({"classes": 300}, "--classes"),
        ({"batch_size": 1}, "--batch-size must be at least 2, not 1"),
        ({"num_negatives": 4}, "--num-negatives .* 1 to 3 .* not 4"),
        ({"batch_size": 16, "num_negatives": 11}, "10 training images; .* 12 at least"),
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"epochs": 3}, "--steps and --epochs"),
        ({"lr": 0.0}, "--lr"),
        ({"depth": 6}, "--depth must be at most 5"),
        ({"smooth": 5}, "--smooth must be at most 4"),
        ({"scale": -1.0}, "--scale"),
        ({"data": "nowhere"}, "nowhere"),
        ({"data": ""}, "--data is missing"),
        ({"rank_timeout": float("nan")}, "--rank-timeout must be .*, not nan"),
        ({"rank_timeout": 1e300}, "--rank-timeout must be at most"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(data, tmp_path, change, told):
    with pytest.raises(DataError, match=told):
        train(out=tmp_path / "run", **SMALL | {"data": data, "steps": 4} | change)
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_a_damaged_image_is_found_before_anything_is_written(data, tmp_path):
    path = Path(data, "images/im3.png")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"im3\.png"):
        train(data, tmp_path / "run", **SMALL, steps=4)
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_an_existing_run_is_not_overwritten(data, tmp_path):
    how = SMALL | {"data": data, "steps": 4}
    train(out=tmp_path / "run", **how)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="exists.*--resume"):
        train(out=tmp_path / "run", **how)
    for change, expected in (({"lr": 0.5}, "--lr 0.003, not 0.5"), ({"width": 9}, "--width 8, not 9")):
        with pytest.raises(DataError, match=expected):
            train(out=tmp_path / "run", resume=True, **how | change)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    write_folder(tmp_path / "other", number=7)
    Path(data).rename(tmp_path / "old")
    (tmp_path / "other").rename(data)
    with pytest.raises(DataError, match="no longer those"):
        train(out=tmp_path / "run", resume=True, **how | {"steps": 6})


def test_a_folder_that_is_no_run_is_not_resumed(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not a run"):
        train(data, tmp_path / "run", resume=True, **SMALL, steps=4)
    assert os.listdir(tmp_path / "run") == ["mine.txt"]


def test_a_run_in_use_is_refused_and_a_crash_releases_it(data, tmp_path):
    how = SMALL | {"data": data, "steps": 4}
    train(out=tmp_path / "run", **how)
    code = (
        "import time; from infoseg_fast.run_folder import RunFolder\n"
        f"held = RunFolder({str(tmp_path / 'run')!r}); held.open({{}}, resume=True)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="in use: another process"):
            train(None, tmp_path / "run", resume=True, steps=6)
        holder.kill()
    train(None, tmp_path / "run", resume=True, steps=6)
    assert losses(tmp_path / "run")[-1][0] == 6


def test_a_run_of_another_layout_is_named(data, tmp_path):
    run = tmp_path / "run"
    train(data, run, **SMALL, steps=4)
    content = torch.load(checkpoint_file(run), weights_only=True)
    torch.save(content | {"layout": 7}, checkpoint_file(run))
    with pytest.raises(DataError, match=rf"checkpoint last of .* has layout 7; this version reads layout {LAYOUT}"):
        isf.load(run)
    record = json.loads((run / "config.json").read_text())
    del record["layout"]
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="layout of an unreleased version"):
        train(None, run, resume=True, steps=6)


def test_labelling_is_made_at_most_once_per_step(data, tmp_path, monkeypatch):
    from infoseg_fast.recipe.default import DefaultRecipe

    made, labelling = [], DefaultRecipe.labelling
    monkeypatch.setattr(DefaultRecipe, "labelling", lambda self, sample: made.append(1) or labelling(self, sample))
    train(data, tmp_path / "run", **SMALL | {"steps": 8, "eval_every": 4})  # checkpoints at 4 and 8 too
    assert len(made) == 2


def test_python_code_gives_settings_by_name(data, tmp_path, capsys):
    for given, told in (
        ({"step": 4}, "no setting 'step'; did you mean steps?"),
        ({"zzz": 4}, "no setting 'zzz' .see infoseg train --help"),
        ({"steps": "many"}, "--steps takes a whole number, not 'many'"),
        ({"steps": 2.5}, "--steps takes a whole number, not 2.5"),
        ({"lr": "fast"}, "--lr takes a number, not 'fast'"),
        ({"refine": 3}, "--refine must be True or False, not 3"),
        ({"bands": "red"}, "--bands takes numbers as 4,3,2, not 'red'"),
        ({"pages": "all"}, "--pages must be first or each, not 'all'"),
        ({"num_negatives": "some"}, "--num-negatives takes a whole number or all, not 'some'"),
    ):
        with pytest.raises(DataError, match=told) as caught:
            isf.train(data, tmp_path / "run", **SMALL | given)
        assert "\n" not in str(caught.value)
    assert isf.train is train and isf.train.__module__ == "infoseg_fast.train"
    assert sorted(os.listdir(tmp_path)) == ["data"]
    given = {"steps": np.int64(2), "bands": [3, 1], "lr": np.float32(0.01), "refine": False, "classes": None}
    assert isf.train(Path(data), tmp_path / "run", **SMALL | given)["num_pixels"] > 0
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert config["bands"] == [3, 1] and config["steps"] == 2 and config["data"] == data and config["classes"] == 2


def test_data_that_moved_are_resumed_by_their_fingerprint(data, tmp_path):
    train(data, tmp_path / "run", **SMALL, steps=4)
    moved = tmp_path / "elsewhere"
    Path(data).rename(moved)
    with pytest.raises(DataError, match="neither a folder"):
        train(None, tmp_path / "run", resume=True, steps=6)
    train(moved, tmp_path / "run", resume=True, steps=6)
    assert rows(tmp_path / "run")[-1]["step"] == 6
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["data"] == str(moved)


def test_the_users_defaults_change_neither_a_run_nor_its_labels(data, tmp_path):
    how = SMALL | {"steps": 2, "overcluster": 2.0, "refine": True}
    expected = train(data, tmp_path / "one", **how)
    images = torch.rand(2, 3, 40, 36)
    labels = isf.load(tmp_path / "one").segment(images)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # what names no device has no values
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                found = train(data, tmp_path / "two", **how)
            loaded = isf.load(tmp_path / "two")
            assert torch.equal(loaded.segment(images), labels)
            assert torch.equal(loaded.segment(images.double()), labels)
            two = str(tmp_path / "two")
            assert run_cli(["eval", two, "--data", data, "--split", "all"]) == 0
            assert run_cli(["predict", two, f"{data}/images", "--out", str(tmp_path / "maps"), "--confidence"]) == 0
            assert run_cli(["export", two, "--format", "torchscript", "--out", str(tmp_path / "m")]) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
    assert same_weights(weights(tmp_path / "one"), weights(tmp_path / "two"))
