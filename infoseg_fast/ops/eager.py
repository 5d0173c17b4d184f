"""The ops called outside the compiler: plain calls and autograd.Functions around a backend's kernels.

They do what the custom ops of `infoseg_fast.ops.custom` do, a few tenths of a millisecond faster a training step: a
custom op flattens its arguments, checks for aliases and passes the dispatcher twice. The projection is folded inside,
so a step has one node in the graph and no temporaries beside the kernel's own. And a gradient that was formed going
forward is handed over as it is, which a custom op may not do.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..reference import fold_projection, fold_projection_gradient
from . import dispatch
from .custom import Gradients, LossSettings, Needs


def takes(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors outside the compiler; subclasses and traced calls need the custom ops."""
    return not torch.compiler.is_compiling() and all(
        type(x) in (Tensor, torch.nn.Parameter, type(None)) for x in tensors
    )


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _needs(ctx, bias: Tensor | None) -> Needs:
    """What a kernel must give for the wanted gradients by features, H, W and b, a Function's first arguments."""
    features, H, weight, b = ctx.needs_input_grad[:4]
    return Needs(features, H or weight, bias is not None and (H or b))


def _unfolded(ctx, gradients: Gradients, H: Tensor, weight: Tensor | None, bias: Tensor | None):
    """A kernel's gradients as those by features, H, W and b, None for each that is not wanted."""
    df, dG, dg0 = gradients
    wanted = ctx.needs_input_grad
    return df if wanted[0] else None, *fold_projection_gradient(dG, dg0, H, weight, bias, wanted[1:4])


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, H, weight, bias, backend):
        ctx.kernel = dispatch.kernel("local_global_similarity", backend)
        G, g0 = fold_projection(H, weight, bias)
        ctx.save_for_backward(features, H, weight, bias, G)
        return ctx.kernel.forward(features, G, g0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z):
        features, H, weight, bias, G = ctx.saved_tensors
        gradients = ctx.kernel.backward(grad_z.contiguous(), features, G, _needs(ctx, bias))
        return *_unfolded(ctx, gradients, H, weight, bias), None


def local_global_similarity(
    features: Tensor, global_features: Tensor, weight: Tensor | None, bias: Tensor | None, backend: str
) -> Tensor:
    if _differentiable(features, global_features, weight, bias):
        return _Similarity.apply(features, global_features, weight, bias, backend)
    kernel = dispatch.kernel("local_global_similarity", backend)
    return kernel.forward(features, *fold_projection(global_features, weight, bias))


class _Assign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, H, weight, bias, temperature, backend):
        ctx.kernel, ctx.temperature = dispatch.kernel("assign", backend), temperature
        G, g0 = fold_projection(H, weight, bias)
        V = ctx.kernel.forward(features, G, g0, temperature)
        ctx.save_for_backward(features, H, weight, bias, G, V)
        return V

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_V):
        features, H, weight, bias, G, V = ctx.saved_tensors
        gradients = ctx.kernel.backward(grad_V.contiguous(), V, features, G, ctx.temperature, _needs(ctx, bias))
        return *_unfolded(ctx, gradients, H, weight, bias), None, None


def assign(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    temperature: float,
    backend: str,
) -> Tensor:
    if _differentiable(features, global_features, weight, bias):
        return _Assign.apply(features, global_features, weight, bias, temperature, backend)
    kernel = dispatch.kernel("assign", backend)
    return kernel.forward(features, *fold_projection(global_features, weight, bias), temperature)


class _ClassMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, H, weight, bias, statistics, temperature, backend):
        ctx.kernel, ctx.temperature = dispatch.kernel("class_moments", backend), temperature
        G, g0 = fold_projection(H, weight, bias)
        moments, V = ctx.kernel.forward(features, G, g0, statistics, temperature, True)
        ctx.save_for_backward(features, H, weight, bias, G, statistics, V)
        return moments

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_moments):
        features, H, weight, bias, G, statistics, V = ctx.saved_tensors
        gradients = ctx.kernel.backward(
            grad_moments.contiguous(), V, statistics, features, G, ctx.temperature, _needs(ctx, bias)
        )
        return *_unfolded(ctx, gradients, H, weight, bias), None, None, None


def class_moments(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    temperature: float,
    backend: str,
) -> Tensor:
    if _differentiable(features, global_features, weight, bias):
        return _ClassMoments.apply(features, global_features, weight, bias, statistics, temperature, backend)
    kernel = dispatch.kernel("class_moments", backend)
    G, g0 = fold_projection(global_features, weight, bias)
    return kernel.forward(features, G, g0, statistics, temperature, False)[0]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, H, weight, bias, valid, settings, backend):
        ctx.kernel, ctx.settings = dispatch.kernel("mutual_information_loss", backend), settings
        G, g0 = fold_projection(H, weight, bias)
        loss, state = ctx.kernel.forward(features, G, g0, valid, settings, _needs(ctx, bias))
        # A gradient that is handed over must have no other holder: it may be scaled in place, and autograd copies what
        # others hold.
        ctx.formed = state if hasattr(ctx.kernel, "hand_over") else None
        ctx.save_for_backward(features, H, weight, bias, G, g0, valid, *(() if ctx.formed else state))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        features, H, weight, bias, G, g0, valid, *state = ctx.saved_tensors
        formed, ctx.formed = ctx.formed, None
        if formed:
            gradients = ctx.kernel.hand_over(grad_loss, formed)
        else:
            needs = _needs(ctx, bias)
            gradients = ctx.kernel.backward(grad_loss, features, G, g0, valid, state, ctx.settings, needs)
        return *_unfolded(ctx, gradients, H, weight, bias), None, None, None


def mutual_information_loss(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    valid: Tensor | None,
    settings: LossSettings,
    backend: str,
) -> Tensor:
    if _differentiable(features, global_features, weight, bias):
        return _Loss.apply(features, global_features, weight, bias, valid, settings, backend)
    kernel = dispatch.kernel("mutual_information_loss", backend)
    G, g0 = fold_projection(global_features, weight, bias)
    return kernel.forward(features, G, g0, valid, settings, Needs(False, False, False))[0]
