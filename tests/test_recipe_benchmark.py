"""The sets that `benchmarks/recipe.py` makes, and the script itself, still run."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from infoseg_fast.data import open_set

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A function that imports a file of benchmarks/ as it is when run from there."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    "name",
    [
        "landscapes", "texture-mosaics", "tissue-sections", "radar", "fluorescence", "slices", "shapes",
        "noisy-colours", "unequal-classes", "uneven-light", "grains", "weaves", "streets", "fields", "phase-contrast",
        "leaves", "roofs", "thin-sections", "thermal", "reef", "welds", "chest-films", "cast-iron", "sonar", "concrete",
        "dermatoscopy", "plates", "circuit-boards", "sea-ice",
    ],
)  # fmt: skip
def test_a_made_set_is_one_that_data_takes_and_the_same_each_time(name, script, tmp_path):
    if name == "texture-mosaics":
        pytest.importorskip("skimage")
    maker = script("recipe").MADE[name]
    first, again = (maker.write(tmp_path / part, train=12, evaluation=3) for part in ("first", "again"))
    train, held_out = open_set(str(first), "train"), open_set(str(first), "eval")
    held_out.check_labels()
    assert (len(train), len(held_out)) == (12, 3)
    assert {path.name: path.read_bytes() for path in (first / "images").iterdir()} == {
        path.name: path.read_bytes() for path in (again / "images").iterdir()
    }
    both = open_set(str(first), "all")
    labels = np.unique(np.concatenate([both.target(i).ravel() for i in range(len(both))]))
    assert labels.tolist() == list(range(train.num_classes))


def test_a_collection_s_name_stands_for_its_sets_and_others_for_themselves(script):
    recipe = script("recipe")
    names = recipe.expanded(["drawn-scenes", "landcover", "drawn-sets"])
    assert names[:2] == ["fields", "phase-contrast"] and names[8:10] == ["landcover", "radar"] and len(names) == 19
    assert recipe.expanded(["drawn-views"])[::7] == ["chest-films", "sea-ice"]
    assert len(recipe.MADE) == 3 + sum(map(len, recipe.COLLECTIONS.values()))  # no two sets of one name
    assert set(names) - {"landcover"} < set(recipe.MADE)


def test_the_recipe_s_table_is_made_of_trials_with_settings(script, monkeypatch, capsys, tmp_path):
    recipe = script("recipe")
    arguments = [
        "landscapes",
        "--seeds",
        "0",
        "--threads",
        "1",
        "--set",
        "steps=2",
        "--set",
        "starts=2",
        "--set",
        "width=4",
        "--csv",
    ]
    monkeypatch.setattr(sys, "argv", ["recipe.py", *arguments, str(tmp_path / "trials.csv")])
    monkeypatch.setitem(recipe.MADE, "landscapes", Few(recipe.MADE["landscapes"]))
    threads = torch.get_num_threads()
    recipe.main()
    torch.set_num_threads(threads)
    assert "landscapes: pixel accuracy" in capsys.readouterr().out
    header, row = (tmp_path / "trials.csv").read_text().splitlines()
    assert header.split(",") == list(recipe.COLUMNS)
    assert row.startswith("landscapes,steps=2 starts=2 width=4,0,")


class Few:
    """A maker of sets that makes a small one."""

    def __init__(self, module) -> None:
        self.module = module

    def write(self, root: Path) -> Path:
        return self.module.write(root, train=33, evaluation=2, side=32)


@pytest.mark.parametrize("name", ["data_throughput", "loss_parts", "scoring_ratios", "thread_scaling", "train_step"])
def test_a_timing_script_finds_all_it_imports(name, script):
    assert script(name).__doc__


def test_the_script_that_times_a_step_of_the_recipe_runs():
    """On its own, since it sets how this process keeps memory."""
    command = [sys.executable, str(BENCHMARKS / "recipe_step.py"), "--rounds", "1", "--images", "2", "--side", "16"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("| 0 |") == printed.count("| 1 |") == 4 and "of 128 crops: choice" in printed
