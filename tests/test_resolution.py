"""The resolution of the appearance, which becomes finer once the partition is found."""

import json
import re

import pytest
import torch
from conftest import write_folder

import infoseg_fast as isf
from infoseg_fast import checkpoint
from infoseg_fast.errors import DataError
from infoseg_fast.recipe import learner
from infoseg_fast.recipe.appearance import RESOLUTION, appearance_term, local_appearance
from infoseg_fast.recipe.learner import SHARPENING, resolution_at
from infoseg_fast.train import train


@pytest.fixture
def how(tmp_path) -> dict:
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    return {
        "data": data, "steps": 8, "crop": 32, "width": 8, "dim": 16, "batch_size": 4, "eval_every": 0,
        "checkpoint_every": 4,
    }  # fmt: skip


@pytest.fixture
def early(monkeypatch):
    monkeypatch.setattr(learner, "SHARPENING", (2, 6))


def trained(run) -> list[dict]:
    return [one["trained"] for one in checkpoint.load(run)["learners"]]


def same(a: list[dict], b: list[dict]) -> bool:
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def test_it_falls_evenly_between_two_steps_and_is_constant_outside():
    first, last = SHARPENING
    assert resolution_at(0, 0.07) == resolution_at(first, 0.07) == RESOLUTION
    assert resolution_at(last, 0.07) == resolution_at(10 * last, 0.07) == pytest.approx(0.07)
    assert resolution_at((first + last) // 2, 0.025) == pytest.approx((RESOLUTION * 0.025) ** 0.5)
    assert {resolution_at(step, RESOLUTION) for step in range(0, 2 * last, 7)} == {RESOLUTION}


def test_the_term_is_the_information_at_that_resolution():
    f, H = torch.randn(2, 5, 8, 8, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    images = torch.rand(2, 3, 32, 32)
    y = local_appearance(images, (8, 8)).double()
    for resolution in (0.03, RESOLUTION, 0.5):
        stated = isf.appearance_information(isf.assign(f, H), y, resolution=resolution)
        found = appearance_term(f, H, images=images, resolution=resolution)
        torch.testing.assert_close(found, stated, rtol=1e-9, atol=1e-12)
    assert appearance_term(f, H, images=images) == appearance_term(f, H, images=images, resolution=RESOLUTION)


def test_the_network_feels_it_once_it_has_changed_and_the_finer_one_never_does(how, tmp_path, early):
    for steps in (3, 5):  # the third step is still with RESOLUTION
        for resolution in (0.05, 0.5):
            train(how | {"steps": steps, "resolution": resolution}, tmp_path / f"{steps} {resolution}")
        runs = [trained(tmp_path / f"{steps} {resolution}") for resolution in (0.05, 0.5)]
        assert [same([a], [b]) for a, b in zip(*runs, strict=True)] == [steps == 3, True]


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_resumed_before_or_while_it_changes_has_the_same_bits(how, tmp_path, early, stop):
    train(how, tmp_path / "whole")
    train(how | {"steps": stop}, tmp_path / "parts")
    train({"steps": 8}, tmp_path / "parts", resume=True)
    assert same(trained(tmp_path / "whole"), trained(tmp_path / "parts"))


def test_a_run_of_before_it_changed_goes_on_as_it_began(how, tmp_path, early):
    train(how | {"steps": 4, "resolution": RESOLUTION}, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["resolution"]
    path.write_text(json.dumps(record))
    train({"steps": 8}, tmp_path / "run", resume=True)
    train(how | {"resolution": RESOLUTION}, tmp_path / "whole")
    assert same(trained(tmp_path / "run"), trained(tmp_path / "whole"))


@pytest.mark.parametrize("resolution", [0.0, -1.0, float("inf"), float("nan")])
def test_one_that_is_none_is_refused(how, tmp_path, resolution):
    with pytest.raises(DataError, match=re.escape(f"--resolution must be above 0, not {resolution}")):
        train(how | {"resolution": resolution}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
