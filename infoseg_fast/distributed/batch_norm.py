"""Batch normalisation with statistics over the images of all ranks.

torch.nn.SyncBatchNorm takes only CUDA tensors. On a CPU `RankBatchNorm2d` sums the statistics.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .world import ranks


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with all its batch normalisations over the ranks, and the same parameters."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for one in module.modules():
        if type(one) is nn.BatchNorm2d:
            one.__class__ = RankBatchNorm2d  # it has the same state
    return module


class RankBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with statistics over all ranks in training."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or ranks() == 1:
            return super().forward(input)
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        output, mean, variance = _Normalised.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)
        return output


class _Normalised(torch.autograd.Function):
    """(x - mean) / std * weight + bias, with the mean and the variance over all ranks.

    With g the gradient of the result, n the number of values of a channel on all ranks, and sums
    over all ranks,

        dx = weight / std * (g - sum g / n - xhat * sum(g * xhat) / n)

    dweight and dbias are sums over this rank. The training loop sums them over the ranks, as the
    gradients of all parameters.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        own = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        variance, mean = (statistic.double() for statistic in own)
        number = x.numel() // x.shape[1]
        sums = torch.stack([torch.ones_like(mean), mean, variance + mean.square()]) * number
        dist.all_reduce(sums)
        count = sums[0, 0]  # a tensor, at which a compiled graph does not end
        mean = sums[1] / count
        variance = (sums[2] / count - mean.square()).clamp_min(0)
        unbiased = (variance * (count / (count - 1).clamp_min(1))).to(weight.dtype)  # for the running variance
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        sum_g = grad.float().sum(dim=(0, 2, 3))
        sum_gx = ((x.float() - mean.view(shape)) * grad).sum(dim=(0, 2, 3)) * inverse
        dx = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([sum_g, sum_gx])
            dist.all_reduce(sums)
            sums /= count
            # dx = weight / std * (g - a - (x - mean) / std * b) as a multiple of g, a multiple of x
            # and a constant.
            scale = weight * inverse
            by_x = -scale * inverse * sums[1]
            constant = -scale * sums[0] - by_x * mean
            dx = torch.addcmul(constant.view(shape), x, by_x.view(shape)).addcmul_(grad, scale.view(shape)).to(x.dtype)
        return dx, sum_gx, sum_g, None
