"""--precision and --compile."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import write_folder
from test_train import SMALL, losses

from infoseg_fast import precision
from infoseg_fast.errors import DataError
from infoseg_fast.precision import has_bfloat16
from infoseg_fast.recipe.default import DefaultRecipe
from infoseg_fast.train import train

pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture
def how(tmp_path) -> dict:
    data = str(write_folder(tmp_path / "data", number=8))
    return SMALL | {"data": data, "recipe": "paper", "width": 4, "dim": 8, "steps": 4, "precision": "auto"}


def recorded(run) -> str:
    return json.loads((run / "config.json").read_text())["config"]["precision"]


def test_bfloat16_computes_the_convolutions_and_the_loss_stays_float32(how, tmp_path, monkeypatch):
    seen, loss = [], DefaultRecipe.loss

    def watched(self, step, images, mask):
        found = loss(self, step, images, mask)
        seen.append((self.network.last[0].dtype, found.dtype))
        return found

    monkeypatch.setattr(DefaultRecipe, "loss", watched)
    train(out=tmp_path / "half", **how | {"precision": "bfloat16"})
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    train(out=tmp_path / "full", **how | {"precision": "float32"})
    one, other = losses(tmp_path / "half")[-1][1], losses(tmp_path / "full")[-1][1]
    assert one == pytest.approx(other, rel=0.05) and one != other


@pytest.mark.parametrize("recipe", ["default", "iic"])
def test_the_other_recipes_train_in_bfloat16(how, tmp_path, recipe):
    for name in ("bfloat16", "float32"):
        train(out=tmp_path / name, **how | {"recipe": recipe, "precision": name})
    (_, one), (_, other) = losses(tmp_path / "bfloat16")[0], losses(tmp_path / "float32")[0]
    assert one == pytest.approx(other, rel=0.05) and one != other


def test_the_processor_is_asked_in_every_version_of_pytorch(monkeypatch):
    answer = has_bfloat16(torch.device("cpu"))
    names = "_is_amx_tile_supported", "_is_avx512_bf16_supported"
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(**{name: getattr(torch.cpu, name) for name in names}))
    assert has_bfloat16(torch.device("cpu")) is answer  # without get_capabilities, as in PyTorch 2.9


def test_auto_is_float32_where_the_processor_has_no_bfloat16(how, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    train(out=tmp_path / "run", **how)
    assert recorded(tmp_path / "run") == "float32"


@pytest.mark.parametrize(("gain", "best"), [(2, "bfloat16"), (1.4, "float32"), (0.5, "float32")])
def test_auto_is_decided_once_by_a_measurement_said_recorded_and_kept(how, tmp_path, monkeypatch, caplog, gain, best):
    caplog.set_level(logging.INFO, "infoseg_fast")
    now, running = [0.0], ["float32"]
    autocast = precision.autocast

    def chosen(name, device):
        running[0] = name
        return autocast(name, device)

    def clock():
        now[0] += 1.0 if running[0] == "bfloat16" else gain
        return now[0]

    with monkeypatch.context() as patch:
        patch.setattr(precision, "has_bfloat16", lambda device: True)
        patch.setattr(precision, "autocast", chosen)
        patch.setattr(precision.time, "perf_counter", clock)
        train(out=tmp_path / "run", **how)
    assert recorded(tmp_path / "run") == best
    assert [r for r in caplog.records if f"--precision auto: {best} (a step takes" in r.getMessage()]
    train(None, tmp_path / "run", resume=True, steps=6, precision="auto")
    assert recorded(tmp_path / "run") == best
    other = {"float32": "bfloat16", "bfloat16": "float32"}[best]
    with pytest.raises(DataError, match=f"started with --precision {best}, not {other}"):
        train(None, tmp_path / "run", resume=True, steps=8, precision=other)
    train(out=tmp_path / "given", **how | {"precision": best, "steps": 6})  # the measurement changed nothing
    assert losses(tmp_path / "given") == losses(tmp_path / "run")


@pytest.mark.long
def test_a_compiled_loss_gives_the_losses(how, tmp_path, monkeypatch):
    """Without the C++ code of inductor, which takes minutes and is not ours."""
    compiled = []

    def compiling(function):
        compiled.append(function)
        return compile_(function, backend="aot_eager")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", compiling)
    train(out=tmp_path / "eager", **how)
    assert not compiled
    train(out=tmp_path / "compiled", **how | {"compile": True})
    assert len(compiled) == 1
    expected = [loss for _, loss in losses(tmp_path / "eager")]
    assert [loss for _, loss in losses(tmp_path / "compiled")] == pytest.approx(expected, rel=1e-4)
