"""The example of a recipe of one's own: it trains, resumes to the same bits, predicts and exports."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image
from test_train import gain_of_a_resumed_run

import infoseg_fast as isf
from infoseg_fast.cli import main
from infoseg_fast.errors import DataError
from infoseg_fast.recipe import Recipe, recipe_class
from infoseg_fast.train import train

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAME = "own_recipe:NeighbourRecipe"


@pytest.fixture
def how(tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(EXAMPLES)
    data = str(write_folder(tmp_path / "data", number=8, side=40))
    return {
        "data": data, "recipe": NAME, "steps": 8, "crop": 32, "batch_size": 4, "checkpoint_every": 4, "log_every": 2,
    }  # fmt: skip


def test_it_learns_and_resumes_to_the_same_bits(how, tmp_path):
    assert gain_of_a_resumed_run(how, tmp_path) > 0.01, "the information grows"


def test_its_command_trains_predicts_and_exports(how, tmp_path):
    def call(*arguments):
        assert main([*map(str, arguments)]) == 0

    run = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    call("train", "--out", run, *options)
    call("predict", run, Path(how["data"], "images"), "--out", tmp_path / "labels")
    call("export", run, "--format", "torchscript", "--out", tmp_path / "model.pt")
    image = np.asarray(Image.open(Path(how["data"], "images/im0.png")))
    pixels = torch.tensor(image).movedim(2, 0)[None].float() / 255
    labels = torch.jit.load(tmp_path / "model.pt")(pixels)[0].numpy()
    predicted = np.asarray(Image.open(tmp_path / "labels/im0.png"))
    assert (labels == predicted).mean() > 0.9999
    assert np.array_equal(predicted, isf.load(run).segment(pixels)[0].numpy())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "default, paper, iic, features or MODULE:CLASS"),
        ("no_module:Recipe", "--recipe no_module:Recipe cannot be imported"),
        ("own_recipe:Missing", "cannot be imported"),
        ("pathlib:Path", "not a subclass"),
        (".own_recipe:NeighbourRecipe", "cannot be imported: the name of a module begins with no dot"),
    ],
)
def test_what_is_no_recipe_is_named(name, message, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    with pytest.raises(DataError, match=message):
        recipe_class(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = = 3", "cannot be imported: SyntaxError: invalid syntax"),
        ("raise ValueError('no licence')", "cannot be imported: ValueError: no licence"),
        ("import sys; sys.path.clear()", "cannot be imported: module 'broken' has no attribute 'It'"),
    ],
)
def test_a_module_that_fails_is_named(code, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(DataError, match=f"--recipe broken:It {message}"):
        recipe_class("broken:It")


class Stateful(Recipe):
    """The example, with a state that a checkpoint does not take."""

    def __new__(cls, settings, data):
        recipe = recipe_class(NAME)(settings, data)
        recipe.state = lambda: {"epoch": np.float64(3)}
        return recipe


def test_a_state_that_could_not_be_loaded_is_refused_before_it_is_saved(how, tmp_path):
    how["recipe"] = f"{__name__}:{Stateful.__name__}"
    with pytest.raises(DataError, match=r"numpy.*scalar is in Recipe.state, or in"):
        train(out=tmp_path / "run", **how)
    assert not [*(tmp_path / "run" / "checkpoints").glob("*")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: None, "loss must return a tensor, not NoneType"),
        (lambda loss: loss[None], r"loss must return a scalar .*, not \[1\] on the graph"),
        (lambda loss: loss.detach(), r"loss must return a scalar .*, not \[\] off the graph"),
    ],
)
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_loss_without_a_gradient_is_named(change, message, precision, how, tmp_path, monkeypatch):
    how["precision"] = precision
    kind = recipe_class(NAME)
    loss = kind.loss
    monkeypatch.setattr(kind, "loss", lambda *given: change(loss(*given)))
    with pytest.raises(DataError, match=f"--recipe {NAME}: {message}"):
        train(out=tmp_path / "run", **how)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"colour": 3}, "there is no setting 'colour'"),
        ({"batch_size": -3}, "--batch-size must be"),
    ],
)
def test_defaults_that_are_no_settings_are_named(defaults, message, how, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_class(NAME), "defaults", defaults)
    with pytest.raises(DataError, match=f"--recipe {NAME}: defaults: {message}"):
        train(out=tmp_path / "run", **how)


def test_the_example_is_short():
    lines = (EXAMPLES / "own_recipe.py").read_text().splitlines()
    code = lines[lines.index("class NeighbourRecipe(Recipe):") :]
    assert len(code) <= 40
