"""Averaged weights. Labels use them, since the weights of a single step scatter around their mean."""

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
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int, share: Tensor | None = None) -> None:
    """Update the exponential moving average of parameters and buffers over about 1 / (1 - decay)
    steps.

    The decay of the first steps is lower, (step + 1) / (step + 10), so that the initial weights are
    forgotten.

    Args:
        average: the average, from `average_of`.
        model: the network.
        decay: weight of the old average, below 1.
        step: number of the step, from 0.
        share: 1 - `decay_of(decay, step)` as a scalar on the device, for a CUDA graph, which would
            repeat a number of the host. None: it is computed.
    """
    own, new = (list(x.parameters()) + list(x.buffers()) for x in (average, model))
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    for a, b in zip(own, new, strict=True):
        if a.is_floating_point():
            averaged[0].append(a)
            averaged[1].append(b)
        else:
            a.copy_(b)  # counters
    if share is None:
        get_ema_multi_avg_fn(decay_of(decay, step))(*averaged, None)
        return
    change = torch._foreach_sub(averaged[1], averaged[0])
    torch._foreach_mul_(change, share)
    torch._foreach_add_(averaged[0], change)


def decay_of(decay: float, step: int) -> float:
    """Weight of the old average in step number `step`."""
    return min(decay, (step + 1) / (step + 10))
