"""An over-clustered beginning: the class that tells least goes, and nothing else of the network changes."""

import json
from pathlib import Path

import pytest
import torch
from conftest import write_folder

import infoseg_fast as isf
from infoseg_fast import checkpoint
from infoseg_fast.appearance import appearance_information, appearance_statistics
from infoseg_fast.elimination import drop_class, least_telling
from infoseg_fast.errors import DataError
from infoseg_fast.train import train

SMALL = {"crop": 32, "width": 8, "dim": 16, "batch_size": 4, "log_every": 1, "checkpoint_every": 3, "eval_every": 0}


@pytest.mark.parametrize("weights", [(10.0, 4.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_class_that_goes_is_the_one_whose_absence_leaves_the_most(weights):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 5, 6, 7, generator=generator, dtype=torch.float64)
    y = logits[:, :3] + torch.randn(3, 3, 6, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 6, 7, generator=generator) > 0.3
    left = []
    for k in range(5):
        rest = logits[:, [j for j in range(5) if j != k]].softmax(dim=1)
        usage = torch.special.entr((rest * mask[:, None]).sum((0, 2, 3)) / mask.sum()).sum()
        left.append(weights[0] * appearance_information(rest, y, mask) + weights[1] * usage)
    found = least_telling(logits.softmax(dim=1), appearance_statistics(y, mask), *weights)
    assert found == int(torch.stack(left).argmax())


@pytest.mark.parametrize("certainty", [5.0, 20.0, 1e4])
def test_one_of_two_classes_for_the_same_thing_goes(certainty):
    """Three colours, the second divided by a coin between classes 1 and 3; also where no other class has a share."""
    generator = torch.Generator().manual_seed(1)
    colour = torch.randint(3, (4, 16, 16), generator=generator)
    y = torch.randn(4, 2, 16, 16, generator=generator) / 10
    y += torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])[colour].movedim(-1, 1)
    label = torch.where((colour == 1) & (torch.rand(4, 16, 16, generator=generator) < 0.5), 3, colour)
    probs = (certainty * torch.nn.functional.one_hot(label, 4).float()).softmax(dim=-1).movedim(-1, 1)
    assert least_telling(probs, appearance_statistics(y), 10.0, 0.0) in (1, 3)


def test_dropping_a_class_leaves_the_others_as_they_were():
    torch.manual_seed(0)
    model = isf.InfoSegNet(3, num_classes=4, width=4, dim=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    images = torch.rand(3, 3, 32, 32)

    def step():
        features, global_features = model(images)
        optimizer.zero_grad()
        (features.square().mean() + global_features.square().mean()).backward()
        optimizer.step()

    step()
    before = [x.clone() for x in model.eval()(images)]
    kept = [j for j in range(4) if j != 1]
    old = {key: x.clone() for key, x in optimizer.state[model.global_projection.weight].items()}
    drop_class(model, optimizer, 1)
    features, global_features = model(images)
    assert model.num_classes == 3 and torch.equal(features, before[0])
    assert torch.equal(global_features, before[1][:, kept])
    new = optimizer.state[model.global_projection.weight]
    assert new["step"] == old["step"]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(new[key].view(3, 8, -1), old[key].view(4, 8, -1)[kept])
    weight = model.train().global_projection.weight.clone()
    step()
    assert not torch.equal(model.global_projection.weight, weight), "the optimiser has the new parameters"


@pytest.fixture
def how(tmp_path, monkeypatch) -> dict:
    """Settings of a run that meets its rival, of 6 classes in the beginning, after 3 + 3 + 4 = 10 of 14 steps."""
    for name, value in {"SURPLUS_STEPS": 3, "STEPS_A_CLASS": 1, "TRIAL_STEPS": 4}.items():
        monkeypatch.setattr(f"infoseg_fast.train.{name}", value)
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    return SMALL | {"data": data, "classes": 3, "steps": 14}


def same(a: Path, b: Path) -> bool:
    a, b = (checkpoint.load(run)["model"] for run in (a, b))
    return all(torch.equal(x, b[key]) for key, x in a.items())


def test_a_rival_takes_over_where_its_loss_is_clearly_lower(how, tmp_path, monkeypatch, capsys):
    train(how | {"overcluster": 1.0}, tmp_path / "alone")
    assert "began with" not in capsys.readouterr().out
    monkeypatch.setattr("infoseg_fast.train.CLEARLY", float("inf"))
    train(how, tmp_path / "never")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 10: ")]
    own, others = (float(x.split()[0].strip(";")) for x in (line.split("loss ")[1], line.split("classes ")[1]))
    assert "began with 6 classes" in line and "trained from here" not in line
    assert same(tmp_path / "never", tmp_path / "alone"), "what is only tried leaves no trace"
    difference = own - others
    for name, margin in {"taken": difference - 1e-3, "not": difference + 1e-3}.items():
        monkeypatch.setattr("infoseg_fast.train.CLEARLY", margin / 10.0)  # the weight of the appearance
        train(how, tmp_path / name)
        assert ("trained from here" in capsys.readouterr().out) == (name == "taken")
        assert same(tmp_path / name, tmp_path / "alone") == (name == "not")
    state = checkpoint.load(tmp_path / "taken")
    assert state["network"]["num_classes"] == 3 and isf.load(tmp_path / "taken").num_clusters == 3
    # The loss that the rival is held against is that of the last steps before.
    rows = [json.loads(row) for row in (tmp_path / "never" / "metrics.jsonl").read_text().splitlines()]
    assert own == pytest.approx(sum(row["loss"] for row in rows if row["step"] in (9, 10)) / 2, abs=1e-3)


@pytest.mark.parametrize("steps", [9, 10, 12])
def test_a_run_in_two_parts_meets_the_same_rival(how, tmp_path, monkeypatch, steps):
    monkeypatch.setattr("infoseg_fast.train.CLEARLY", -float("inf"))
    train(how, tmp_path / "whole")
    train(how | {"steps": steps}, tmp_path / "parts")
    train({"steps": 14}, tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("settings", [{"recipe": "paper"}, {"appearance": 0.0}, {"overcluster": 1.1}])
def test_without_appearance_or_more_classes_there_is_no_rival(how, tmp_path, monkeypatch, settings):
    monkeypatch.setattr("infoseg_fast.train.rival", lambda *_: pytest.fail("a rival was trained"))
    train(how | settings, tmp_path / "run")


def test_fewer_classes_than_wanted_are_refused(how, tmp_path):
    with pytest.raises(DataError, match=r"--overcluster must be at least 1, not 0\.5"):
        train(how | {"overcluster": 0.5}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
