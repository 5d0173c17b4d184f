"""The ops called outside the compiler: plain calls and autograd.Functions around a backend's kernels.

They do what the custom ops of `infoseg_fast.ops.custom` do, a few tenths of a millisecond faster a training step: a
custom op flattens its arguments, checks for aliases and passes the dispatcher twice. And a gradient that was formed
going forward can be handed over as it is, which a custom op may not do.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import dispatch
from .custom import LossSettings, Needs


def takes(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors outside the compiler; subclasses and traced calls need the custom ops."""
    return not torch.compiler.is_compiling() and all(
        type(x) in (Tensor, torch.nn.Parameter, type(None)) for x in tensors
    )


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _wanted(gradients, needs: Needs) -> tuple[Tensor | None, ...]:
    return tuple(x if need else None for x, need in zip(gradients, needs, strict=True))


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, G, g0, backend):
        ctx.kernel = dispatch.kernel("local_global_similarity", backend)
        ctx.save_for_backward(features, G)
        return ctx.kernel.forward(features, G, g0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z):
        features, G = ctx.saved_tensors
        needs = Needs(*ctx.needs_input_grad[:3])
        return *_wanted(ctx.kernel.backward(grad_z.contiguous(), features, G, needs), needs), None


def local_global_similarity(features: Tensor, G: Tensor, g0: Tensor | None, backend: str) -> Tensor:
    if _differentiable(features, G, g0):
        return _Similarity.apply(features, G, g0, backend)
    return dispatch.kernel("local_global_similarity", backend).forward(features, G, g0)


class _Assign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, G, g0, temperature, backend):
        ctx.kernel, ctx.temperature = dispatch.kernel("assign", backend), temperature
        V = ctx.kernel.forward(features, G, g0, temperature)
        ctx.save_for_backward(features, G, V)
        return V

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_V):
        features, G, V = ctx.saved_tensors
        needs = Needs(*ctx.needs_input_grad[:3])
        gradients = ctx.kernel.backward(grad_V.contiguous(), V, features, G, ctx.temperature, needs)
        return *_wanted(gradients, needs), None, None


def assign(features: Tensor, G: Tensor, g0: Tensor | None, temperature: float, backend: str) -> Tensor:
    if _differentiable(features, G, g0):
        return _Assign.apply(features, G, g0, temperature, backend)
    return dispatch.kernel("assign", backend).forward(features, G, g0, temperature)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, G, g0, valid, settings, backend):
        ctx.kernel, ctx.settings = dispatch.kernel("mutual_information_loss", backend), settings
        needs = Needs(*ctx.needs_input_grad[:3])
        loss, state = ctx.kernel.forward(features, G, g0, valid, settings, needs)
        ctx.save_for_backward(features, G, g0, valid, *state)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        features, G, g0, valid, *state = ctx.saved_tensors
        needs = Needs(*ctx.needs_input_grad[:3])
        formed = getattr(ctx.kernel, "formed_gradients", None)
        gradients = formed and formed(grad_loss, features, G, state, ctx.settings)
        if gradients is None:
            gradients = ctx.kernel.backward(grad_loss, features, G, g0, valid, state, ctx.settings, needs)
        return *_wanted(gradients, needs), None, None, None


def mutual_information_loss(
    features: Tensor, G: Tensor, g0: Tensor | None, valid: Tensor | None, settings: LossSettings, backend: str
) -> Tensor:
    if _differentiable(features, G, g0):
        return _Loss.apply(features, G, g0, valid, settings, backend)
    kernel = dispatch.kernel("mutual_information_loss", backend)
    return kernel.forward(features, G, g0, valid, settings, Needs(False, False, False))[0]
