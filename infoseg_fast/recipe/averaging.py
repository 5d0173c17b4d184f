"""Averaged weights: labels are made from them, since the weights of a single step scatter around
their mean.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def average_of(model: Network) -> Network:
    """A copy of the model in evaluation mode, for `update_average`."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the parameters and buffers of `average` towards those of `model`.

    The exponential moving average over about 1 / (1 - decay) steps. The decay of the first steps is
    lower, (step + 1) / (step + 10), so that the initial weights are forgotten.

    Args:
        decay: weight of the old average, below 1.
        step: number of the step, from 0.
    """
    own, new = (list(x.parameters()) + list(x.buffers()) for x in (average, model))
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a, b in zip(own, new, strict=True):
        if a.is_floating_point():
            averaged[0].append(a)
            averaged[1].append(b)
        else:
            a.copy_(b)  # counters
    get_ema_multi_avg_fn(min(decay, (step + 1) / (step + 10)))(*averaged, None)
