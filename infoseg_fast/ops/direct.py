"""The direct call of a kernel: a plain call, or one `torch.autograd.Function`.

Tensors are checked, ordinary and outside the compiler (`dispatch.plain`). The projection is folded
within the call, so the graph of a step has one node for an op.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.folding import fold_projection, fold_projection_gradient
from . import checks, dispatch
from .protocol import Needs

_C = torch._C._functorch


def folded(tensors: Sequence[Any], kernel: Any = None) -> tuple[Any, ...]:
    """The tensors of a kernel from those of the op, features, H, W, b and the constants: G and g0
    replace H, W and b. `kernel` folds the projection if it can.
    """
    features, H, weight, bias, *constants = tensors
    fold = getattr(kernel, "fold", fold_projection)
    with checks.without_autocast(features):  # G and g0 have the accumulation dtype
        G, g0 = fold(H, weight, bias)
    return features, G, g0, *constants


def projected(name: str, kernel: Any, tensors: Sequence[Any], settings: Sequence[Any]) -> Tensor:
    """The result of a kernel that folds the projection itself.

    Args:
        name: the name of the op, for errors.
        tensors: features, H, W, b (or None) and the constants.
    """
    features, H, weight, bias, *constants = tensors
    H, weight, bias = H.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    if torch.is_grad_enabled() and (
        features.requires_grad or H.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _ProjectedCall.apply((name, kernel, settings), features, H, weight, bias, *constants)
    return kernel.forward_projected((features, H, weight, bias, *constants), settings, (False,) * 4)[0]


class _ProjectedCall(torch.autograd.Function):
    """`projected` with a gradient."""

    @staticmethod
    def forward(ctx: Any, call: tuple[str, Any, Sequence[Any]], *tensors: Any) -> Tensor:
        _, kernel, settings = ctx.call = call
        out, kept, ctx.layout = kernel.forward_projected(tensors, settings, ctx.needs_input_grad[1:5])
        ctx.save_for_backward(*tensors, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, *_derivatives(ctx, ctx.call[0], grad, _ProjectedCall._gradients)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor, saved: Sequence[Any]) -> tuple[Tensor | None, ...]:
        (_, kernel, settings), needs = ctx.call, ctx.needs_input_grad
        number = len(needs) - 1
        found = kernel.backward_projected(grad, ctx.layout, saved[number:], saved[:number], settings, needs[1:5])
        return *found, *(None,) * (number - 4)


class DirectCall(torch.autograd.Function):
    """The call of any other kernel with a gradient. `wiring` is that of the op."""

    @staticmethod
    def forward(ctx: Any, wiring: Any, kernel: Any, settings: Sequence[Any], *tensors: Any) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        if wiring.folds:
            inputs, needs = folded(tensors, kernel), Needs.of(wanted[:4], tensors[3])
        else:
            inputs, needs = tensors, wanted[: wiring.differentiable]
        out, saved = kernel.forward(*inputs, *settings, needs)
        # A gradient that is handed over must have no other holder: it may be scaled in place, and
        # autograd copies what others hold.
        ctx.formed = saved if saved and hasattr(kernel, "hand_over") else None
        kept = () if ctx.formed else saved
        if wiring.saves_output:
            kept = out, *kept
        ctx.call = wiring, kernel, settings, needs
        ctx.save_for_backward(*inputs, *(tensors[1:4] if wiring.folds else ()), *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gradients = _derivatives(ctx, ctx.call[0].name, grad, DirectCall._gradients)
        return None, None, None, *gradients, *(None,) * (len(ctx.needs_input_grad) - 3 - len(gradients))

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor, tensors: Sequence[Any]) -> tuple[Tensor | None, ...]:
        wiring, kernel, settings, needs = ctx.call
        inputs, kept = tensors[: wiring.tensors], tensors[wiring.tensors :]
        if wiring.folds:
            (H, weight, bias), kept = kept[:3], kept[3:]
        formed, ctx.formed = ctx.formed, None
        if formed:
            found = kernel.hand_over(grad, formed)
        else:
            found = kernel.backward(grad, list(kept), *inputs, *settings, needs)
        if not wiring.folds:
            return tuple(x if need else None for x, need in zip(found, needs, strict=True))
        df, dG, dg0 = found
        wanted = ctx.needs_input_grad
        return df if wanted[3] else None, *fold_projection_gradient(dG, dg0, H, weight, bias, wanted[4:7])


def _derivatives(
    ctx: Any, name: str, grad: Tensor, gradients: Callable[..., tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """The result of `gradients(ctx, grad, saved tensors)`: a gradient, or None, for each tensor of
    the op. A derivative of these gradients raises an error.
    """
    if _C.is_batchedtensor(grad) or _C.is_legacy_batchedtensor(grad):
        raise RuntimeError(dispatch.first_derivatives_only(name))
    grad, saved = grad.resolve_neg().contiguous(), ctx.saved_tensors
    if not torch.is_grad_enabled():
        return gradients(ctx, grad, saved)
    with torch.no_grad():  # create_graph=True
        found = gradients(ctx, grad, saved)
    return _FirstDerivative.apply(name, len(found), *found, grad, *saved)


class _FirstDerivative(torch.autograd.Function):
    """Returns the gradients. Its own derivative raises an error, so that a gradient penalty is not
    lost in silence. The inputs of the op are arguments, so that the graph leads from the gradients
    to them.
    """

    @staticmethod
    def forward(ctx: Any, name: str, number: int, *gradients_and_inputs: Any) -> tuple[Tensor | None, ...]:
        ctx.name = name
        return tuple(None if x is None else x.view_as(x) for x in gradients_and_inputs[:number])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(dispatch.first_derivatives_only(ctx.name))
