"""Averaged weights: the exponential mean, over a growing window first, and what training makes labels of."""

import pytest
import torch
from PIL import Image
from torch import nn

from infoseg_fast import checkpoint, load
from infoseg_fast.recipe.averaging import add_to_average, averaged
from infoseg_fast.train import train


def test_the_average_is_the_exponential_mean_of_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = averaged(model)
    weight, mean = model[0].weight.detach().clone(), model[1].running_mean.clone()
    for step in range(30):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_mean.normal_()
            model[1].num_batches_tracked += 1
        add_to_average(average, model, 0.5, step)
        keep = min(0.5, (step + 1) / (step + 10))
        weight, mean = keep * weight + (1 - keep) * model[0].weight, keep * mean + (1 - keep) * model[1].running_mean
    torch.testing.assert_close(average[0].weight, weight)
    torch.testing.assert_close(average[1].running_mean, mean)
    assert average[1].num_batches_tracked == 30
    assert not any(p.requires_grad for p in average.parameters())
    assert not torch.equal(average[0].weight, model[0].weight)


@pytest.mark.parametrize("keep", [0.0, 0.9])
def test_labels_are_made_by_the_averaged_weights_and_training_goes_on_from_its_own(keep, tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(4):
        Image.effect_noise((32, 32), 60).save(tmp_path / "data" / "images" / f"{i}.png")
    how = {"data": str(tmp_path / "data"), "classes": 2, "crop": 32, "width": 4, "dim": 8, "batch_size": 2}
    how["overcluster"] = 1.0
    train(how | {"steps": 8, "average": keep, "warmup": 0}, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    learner = state.pop("learners")[0]
    assert all(torch.equal(learner["average"][name], value) for name, value in state["model"].items())
    differ = [not torch.equal(state["model"][name], value) for name, value in learner["trained"].items()]
    assert any(differ) == bool(keep)
    state["optimizer"] = learner["optimizer"]  # as in runs from before weights were averaged
    checkpoint.save(tmp_path / "run", state, is_best=False)
    train({"steps": 9}, tmp_path / "run", resume=True)
    state = checkpoint.load(tmp_path / "run")
    used = load(tmp_path / "run").model.state_dict()
    assert all(torch.equal(used[name], value) for name, value in state["model"].items())
