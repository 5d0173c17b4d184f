"""Differentiable sums and gathers over the ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .world import rank, ranks


def summed(x: Tensor) -> Tensor:
    """The sum over the ranks. Its gradient is the sum of the ranks' gradients."""
    return x if ranks() == 1 else _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


def sizes_of_ranks(number: int) -> list[int]:
    """`number` of each rank, in the order of the ranks. It does not wait for a GPU."""
    sizes = torch.zeros(ranks(), dtype=torch.int64)
    sizes[rank()] = number
    if ranks() > 1:
        dist.all_reduce(sizes)
    return sizes.tolist()


def gathered(x: Tensor, sizes: list[int]) -> Tensor:
    """The rows [n, ...] of all ranks, [sum of sizes, ...].

    It is a sum of tensors that are zero outside a rank's own rows, so that ranks may have different
    sizes and every backend has its gradient. It sends twice the bytes of an all-gather, which is
    little for the global features of a batch.
    """
    if ranks() == 1:
        return x
    first = sum(sizes[: rank()])
    before, after = x.new_zeros(first, *x.shape[1:]), x.new_zeros(sum(sizes) - first - len(x), *x.shape[1:])
    return summed(torch.cat([before, x, after]))
