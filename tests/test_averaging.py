"""Averaged weights: the exponential mean, over a growing window first."""

import torch
from torch import nn

from infoseg_fast.recipe.averaging import average_of, update_average


def test_the_average_is_the_exponential_mean_of_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = average_of(model)
    weight, mean = model[0].weight.detach().clone(), model[1].running_mean.clone()
    for step in range(30):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_mean.normal_()
            model[1].num_batches_tracked += 1
        update_average(average, model, 0.5, step)
        keep = min(0.5, (step + 1) / (step + 10))
        weight, mean = keep * weight + (1 - keep) * model[0].weight, keep * mean + (1 - keep) * model[1].running_mean
    torch.testing.assert_close(average[0].weight, weight)
    torch.testing.assert_close(average[1].running_mean, mean)
    assert average[1].num_batches_tracked == 30
    assert not any(p.requires_grad for p in average.parameters())
    assert not torch.equal(average[0].weight, model[0].weight)
