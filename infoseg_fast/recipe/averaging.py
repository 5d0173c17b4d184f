"""Weights averaged over the last steps: what labels are made of. A single step's weights scatter about their mean."""

import copy
import itertools

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def averaged(model: nn.Module) -> nn.Module:
    """A copy of the model, for `add_to_average`."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def add_to_average(average: nn.Module, model: nn.Module, keep: float, step: int) -> None:
    """Move every parameter and buffer of `average` towards the model's, of which `step` steps were added before.

    The exponential mean that keeps the share `keep` of itself at every step, over about 1 / (1 - keep) steps; in the
    beginning over the last tenth of those there were, (step + 10) / 9.
    """
    pairs = [
        pair
        for own, other in ((average.parameters(), model.parameters()), (average.buffers(), model.buffers()))
        for pair in zip(own, other, strict=True)
    ]
    numbers = [pair for pair in pairs if pair[0].is_floating_point()]
    for own, other in itertools.filterfalse(lambda pair: pair[0].is_floating_point(), pairs):
        own.copy_(other)
    get_ema_multi_avg_fn(min(keep, (step + 1) / (step + 10)))(*map(list, zip(*numbers, strict=True)), None)
