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
    *parts, whole = (float(line.split("|")[2]) for line in capsys.readouterr().out.splitlines()[2:-1])
    assert len(parts) == 6 + (recipe == "default") and sum(parts) == pytest.approx(whole, abs=0.01 * len(parts))


@pytest.mark.parametrize("name", ["data_throughput", "loss_parts", "scoring_ratios", "thread_scaling", "train_step"])
def test_a_timing_script_finds_all_it_imports(name, script):
    assert script(name).__doc__


def test_the_script_that_times_the_parts_of_a_recipe_runs():
    """In a process of its own, since the script sets how the process keeps memory."""
    command = [
        sys.executable,
        str(BENCHMARKS / "recipe_step.py"),
        "--rounds",
        "1",
        "--images",
        "32",
        "--side",
        "16",
        "--classes",
        "3",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("| 0 |") == printed.count("| 1 |") == 3 and "a labelling, from 256 crops" in printed
