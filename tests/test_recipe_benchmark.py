"""The drawn sets and the scripts of benchmarks/."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

import infoseg_fast as isf
from infoseg_fast.data import open_set

SETS = [
    "landscapes", "texture-mosaics", "tissue-sections", "radar", "noisy-colours", "unequal-classes", "uneven-light",
    "grains",
]  # fmt: skip
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A function that imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", SETS)
def test_a_drawn_set_is_one_that_data_takes_and_the_same_each_time(name, script, tmp_path):
    if name == "texture-mosaics":
        pytest.importorskip("skimage")
    drawn = script("sets").DRAWN_SETS[name]
    first, again = (drawn.write(tmp_path / part, train=12, evaluation=3) for part in ("first", "again"))
    train, held_out = open_set(str(first), "train"), open_set(str(first), "eval")
    held_out.check_labels()
    assert (len(train), len(held_out)) == (12, 3)
    assert {path.name: path.read_bytes() for path in (first / "images").iterdir()} == {
        path.name: path.read_bytes() for path in (again / "images").iterdir()
    }
    both = open_set(str(first), "all")
    labels = np.unique(np.concatenate([both.target(i).ravel() for i in range(len(both))]))
    assert labels.tolist() == list(range(train.num_classes))


def test_every_drawn_set_is_tested(script):
    assert list(script("sets").DRAWN_SETS) == SETS


def test_the_table_of_runs_is_continued_from_its_csv(script, monkeypatch, capsys, tmp_path):
    real, csv = script("recipe.real"), tmp_path / "real.csv"
    command = f"real.py landscapes --seeds 0 --threads 1 --set steps=2 --without over-clustering --csv {csv}"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setitem(real.DRAWN_SETS, "landscapes", Few(real.DRAWN_SETS["landscapes"]))
    threads = torch.get_num_threads()
    real.main()
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith("landscapes ") and "accuracy" in printed
    header, row = csv.read_text().splitlines()
    assert header.split(",") == list(real.COLUMNS) and row.startswith("landscapes,default steps=2 overcluster=1,0,")
    monkeypatch.setattr(real, "score_run", None)  # a finished run is not repeated
    real.main()
    torch.set_num_threads(threads)
    assert capsys.readouterr().out.splitlines() == [printed] and csv.read_text().splitlines() == [header, row]


class Few:
    """A drawn set with few images."""

    def __init__(self, drawn) -> None:
        self.drawn = drawn

    def write(self, root: Path) -> Path:
        return self.drawn.write(root, train=33, evaluation=2, side=32)


@pytest.mark.parametrize("given", [{"recipe": "paper"}, {}, {"precision": "bfloat16"}], ids=str)
def test_the_profiled_steps_are_those_of_train(given, script, tmp_path):
    loop, laps, data = script("reference_loop"), [], tmp_path / "data"
    loop.write_images(data, 8, 64)
    given = {"recipe": "default", "precision": "float32", "classes": 3} | given
    steps = loop.own_steps(data, loop.settings_of(Namespace(**given, images=4, side=32), data), laps.append)
    losses = [next(steps) for _ in range(3)]
    isf.train(str(data), tmp_path / "run", **given, batch_size=4, crop=32, warmup=0, steps=3, log_every=1)
    assert losses == [json.loads(row)["loss"] for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    terms = ["loss"] if given["recipe"] == "paper" else ["loss", "appearance term", "loss"]  # forward, backward
    step = ["data", "augmentation", "backbone", *terms, "backbone", "optimiser", "averaged weights"]
    assert [part for part, _ in groupby(laps)] == 3 * step


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_the_parts_of_a_profile_add_up(recipe, script, tmp_path, capsys):
    loop = script("reference_loop")
    loop.write_images(tmp_path, 8, 64)
    loop.profile(Namespace(recipe=recipe, precision="float32", classes=3, images=4, side=32, rounds=1), tmp_path)
    *parts, whole = (float(line.split("|")[2]) for line in capsys.readouterr().out.splitlines()[2:])
    assert len(parts) == 6 + (recipe == "default") and sum(parts) == pytest.approx(whole, abs=0.01 * len(parts))


def test_a_raster_that_repeats_a_tile_is_read(script, tmp_path):
    pytest.importorskip("rasterio")
    script("crops").write_large(tmp_path / "scene.tif", 512, 3)
    image = open_set(str(tmp_path / "scene.tif"), "train").image(0)
    assert image.shape == (3, 512, 512) and np.array_equal(image[:, :256, :256], image[:, 256:, 256:]) and image.any()


# The smallest run of each script, and a part of its last result.
RUNS = {
    "crops.py speed --side 512 --compression none --batches 2": "by processor time",
    "data_throughput.py feed {folder}/set --images 64": "loss mask gt, epoch 3",
    "data_throughput.py prepare {folder}/raw --images 8 --workers 1": "8 images of",
    "kernel_tables.py {benchmarks}/timings/ops.csv": "| mutual_information_loss | jsd all |",
    "loss_parts.py --rounds 1": "| a step of tiny tensors, eager PyTorch |",
    "op_errors.py --op assign": "| float16 |",
    "recipe_step.py --rounds 1 --side 16 --classes 3": "a labelling, from 256 crops",
    "recipe/bit_depth.py {set} --seeds 0 --threads 1 --steps 1": "mean accuracy",
    "recipe/parts.py --csv {folder}/parts.csv {set}={run}": "averaging: pixel_accuracy",
    "reference_loop.py --images 4 --side 32 --classes 3 --rounds 1": "peak memory of a process, infoseg-fast",
    "scoring_ratios.py bootstrap": "| the same, a loop over scipy |",
    "thread_scaling.py --rounds 1": "| segment_and_count |",
    "train_step.py --width 4 --images 4 --side 32 --threads 1 --rounds 1": "| 1 | plain PyTorch |",
}
# Scripts that other tests run, a module that needs two more packages, and the cases of `make bench`.
OTHERS = {
    "backbones.py", "gpu.py", "host_time.py", "predict.py", "ratio_plot.py", "recipe/real.py", "scaling.py",
    "test_bench_scoring.py", "test_ops.py", "test_train_step.py",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the default recipe, with the folder of its set beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(BENCHMARKS))
        drawn = importlib.import_module("sets").DRAWN_SETS["landscapes"]
    Few(drawn).write(folder / "set")
    isf.train(str(folder / "set"), folder / "run", steps=1, precision="float32")
    return folder / "run"


@pytest.mark.long
@pytest.mark.parametrize("command", RUNS)
def test_a_script_runs(command, run, tmp_path):
    if command.startswith(("crops.py", "recipe/bit_depth.py")):
        pytest.importorskip("rasterio")
    given = command.format(folder=tmp_path, benchmarks=BENCHMARKS, run=run, set=run.parent / "set").split()
    # In a process of its own, since a script sets how the process keeps memory.
    done = subprocess.run([sys.executable, BENCHMARKS / given[0], *given[1:]], capture_output=True, text=True)
    assert RUNS[command] in done.stdout and done.returncode == 0, done.stderr


def test_every_script_is_run():
    named = {command.split()[0] for command in RUNS} | OTHERS
    folders = BENCHMARKS, BENCHMARKS / "recipe"
    assert named == {str(path.relative_to(BENCHMARKS)) for folder in folders for path in folder.glob("*.py")}


@pytest.mark.long
def test_the_peak_memory_of_predict_is_not_that_of_the_script(run, tmp_path):
    code = "import runpy, sys, numpy; numpy.ones(1 << 27); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, BENCHMARKS / "predict.py", run, tmp_path, "--rows", "64", "--columns", "64"]
    printed = subprocess.run([*command, "--kind", "png"], capture_output=True, text=True, check=True).stdout
    assert float(printed.split("peak resident memory: ")[1].split()[0]) < 1024  # MiB, the size of numpy.ones
