"""An over-clustered beginning: the class that tells least goes, and nothing else of the network changes."""

import pytest
import torch
from conftest import write_folder

import infoseg_fast as isf
from infoseg_fast import checkpoint
from infoseg_fast.appearance import appearance_information, appearance_statistics
from infoseg_fast.elimination import drop_class, least_telling
from infoseg_fast.errors import DataError
from infoseg_fast.train import train

SMALL = {"crop": 32, "width": 8, "dim": 16, "batch_size": 4, "steps": 6, "checkpoint_every": 3, "eval_every": 0}


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


def test_one_of_two_classes_for_the_same_thing_goes():
    """Three colours, of which the first is divided by a coin between the classes 0 and 3."""
    colour = torch.randint(3, (4, 16, 16), generator=torch.Generator().manual_seed(1))
    y = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(2)) / 10
    y += torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])[colour].movedim(-1, 1)
    label = torch.where((colour == 0) & (torch.rand(4, 16, 16) < 0.5), 3, colour)
    probs = (20 * torch.nn.functional.one_hot(label, 4).float()).softmax(dim=-1).movedim(-1, 1)
    assert least_telling(probs, appearance_statistics(y), 10.0, 0.0) in (0, 3)


def test_certain_probabilities_are_no_trouble():
    """Where one class has a position with probability 1 the others share it when that class goes."""
    probs = torch.nn.functional.one_hot(torch.randint(3, (2, 8, 8)), 3).float().movedim(-1, 1)
    assert least_telling(probs, appearance_statistics(torch.randn(2, 4, 8, 8)), 10.0, 4.0) in range(3)


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


def test_a_run_that_begins_over_clustered_ends_with_the_classes_asked(tmp_path):
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    how = SMALL | {"data": data, "classes": 3}
    for name, more in {"plain": {}, "one": {"overcluster": 2.0}, "two": {"overcluster": 2.0, "starts": 2}}.items():
        train(how | more, tmp_path / name)
    states = {name: checkpoint.load(tmp_path / name) for name in ("plain", "one", "two")}
    for state in states.values():
        assert state["network"]["num_classes"] == 3 and state["step"] == 6
    weights = [states[name]["model"]["global_projection.weight"] for name in states]
    assert not torch.equal(weights[0], weights[1])
    # Again, and in two parts: the same bits.
    train(how | {"overcluster": 2.0, "steps": 3}, tmp_path / "parts")
    train({"steps": 6}, tmp_path / "parts", resume=True)
    train(how | {"overcluster": 2.0}, tmp_path / "again")
    again = checkpoint.load(tmp_path / "again")["model"]
    assert all(torch.equal(again[key], x) for key, x in states["one"]["model"].items())
    assert isf.load(tmp_path / "parts").num_clusters == 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"overcluster": 0.5}, "--overcluster must be at least 1, not 0.5"),
        ({"overcluster": 2.0, "recipe": "paper"}, "--overcluster 2.0 needs --appearance or --balance above 0"),
    ],
)
def test_what_cannot_be_is_told(settings, told, tmp_path):
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    with pytest.raises(DataError, match=told):
        train(SMALL | {"data": data} | settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
