"""The custom op of a kernel, with its fake and its gradient, and the choice between the custom op
and the direct call.

Ordinary tensors outside the compiler take the direct call (`infoseg_fast.ops.direct`), which costs
less host time. Whatever records, compiles or wraps tensors takes the custom ops
`infoseg_fast::NAME` and `infoseg_fast::NAME_backward`.

Kernels have first derivatives only. Second derivatives raise an error that names
`backend="reference"`. So do `torch.func` transforms and forward mode, unless the backend is "auto":
then `dispatch.select` takes the reference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import direct, dispatch
from .protocol import Needs

NAMESPACE = "infoseg_fast"


class Wiring:
    """The custom op and the direct call of an op. A call takes the one that fits its tensors.

    Args:
        name: the name of the op and of its kernels.
        schema: the arguments of a kernel in the notation of torch.library. Tensors come first.
        fake: `fake(*arguments)` with the arguments of a kernel returns an uninitialised result of
            the right shape, dtype and device.
        differentiable: the number of tensors, the first ones, that may have a gradient. If 0,
            kernels return the result alone.
        folds: whether the op is one of features: it takes features, H, W and b, and its kernels
            take features, G and g0.
        saves_output: whether the backward pass of a kernel reads the result.
        settings: a NamedTuple whose fields end the schema. Kernels take it in their place. None:
            kernels take the settings one by one.
        result: the type of the result in the schema of an op without gradients.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        fake: Callable[..., Any],
        *,
        differentiable: int = 0,
        folds: bool = False,
        saves_output: bool = False,
        settings: Any = None,
        result: str = "Tensor",
    ) -> None:
        self.name, self.schema, self.fake = name, schema, fake
        self.differentiable, self.folds, self.saves_output = differentiable, folds, saves_output
        self.settings = settings
        kinds = [argument.split()[0] for argument in schema.split(", ")]
        self.tensors = sum(kind.startswith("Tensor") for kind in kinds)  # among the kernel's arguments
        if differentiable:
            self.custom = self._define(
                name, f"{schema}, bool[] needs, str backend", "(Tensor, Tensor[])", self._forward
            )
            self.custom.register_fake(self._fake_forward)
            arguments = f"Tensor grad, Tensor[] saved, {schema}, bool[] needs, str backend"
            self.custom_backward = self._define(f"{name}_backward", arguments, "Tensor[]", self._backward)
            self.custom_backward.register_fake(self._fake_backward)
            self.custom.register_autograd(self._autograd_backward, setup_context=self._autograd_setup)
            self.custom_backward.register_autograd(self._refuse)
        else:
            self.custom = self._define(name, f"{schema}, str backend", result, self._plain)
            self.custom.register_fake(lambda *arguments: fake(*self._packed(arguments[:-1])))

    def needs(self, wanted: Sequence[bool] | bool) -> tuple[bool, ...]:
        """The argument `needs` of a kernel. A single bool holds for every gradient."""
        each = [wanted] * self.differentiable if isinstance(wanted, bool) else wanted
        return Needs(*each) if self.folds else tuple(each)

    def __call__(self, backend: str, *arguments: Any) -> Any:
        """The result for checked arguments: those of a kernel, with H, W and b in place of G and g0
        if the op folds.
        """
        number = self.tensors + self.folds
        tensors, settings = arguments[:number], arguments[number:]
        if not dispatch.plain(*tensors):
            return self._call_custom(tensors, settings, backend)
        for x in tensors:
            if x is not None and x.is_neg():  # a negated view, as of torch.imag(x.conj()): kernels read the memory
                tensors = tuple(x if x is None else x.resolve_neg() for x in tensors)
                break
        kernel = dispatch.kernel(self.name, backend)
        if not self.differentiable:
            return kernel.forward(*self._inputs(tensors, kernel), *settings)
        if self.folds and tensors[2] is not None and hasattr(kernel, "forward_projected"):
            return direct.projected(self.name, kernel, tensors, settings)
        if torch.is_grad_enabled():
            for x in tensors[: self.differentiable + self.folds]:
                if x is not None and x.requires_grad:
                    return direct.DirectCall.apply(self, kernel, settings, *tensors)
        return kernel.forward(*self._inputs(tensors, kernel), *settings, self.needs(False))[0]

    def _inputs(self, tensors: Sequence[Any], kernel: Any = None) -> Sequence[Any]:
        """The tensors of a kernel. `kernel` folds the projection if it can."""
        return direct.folded(tensors, kernel) if self.folds else tensors

    def _call_custom(self, tensors: Sequence[Any], settings: Sequence[Any], backend: str) -> Any:
        inputs = self._inputs(tensors)
        if self.settings is not None:
            settings = tuple(settings[0])
        if not self.differentiable:
            return self.custom(*inputs, *settings, backend)
        grad = torch.is_grad_enabled()
        needs = [grad and x is not None and x.requires_grad for x in inputs[: self.differentiable]]
        return self.custom(*inputs, *settings, needs, backend)[0]

    # The custom ops.

    def _define(self, name: str, arguments: str, result: str, body: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(f"{NAMESPACE}::{name}", body, mutates_args=(), schema=f"({arguments}) -> {result}")
        op.register_vmap(self._refuse)
        return op

    def _packed(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of the kernel from those of the custom op."""
        if self.settings is None:
            return tuple(arguments)
        number = len(self.settings._fields)
        return *arguments[:-number], self.settings(*arguments[-number:])

    def _plain(self, *arguments: Any) -> Any:
        *inputs, backend = arguments
        return dispatch.kernel(self.name, backend).forward(*self._packed(inputs))

    def _forward(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        *inputs, needs, backend = arguments
        out, saved = dispatch.kernel(self.name, backend).forward(*self._packed(inputs), self.needs(needs))
        return out, list(saved)

    def _fake_forward(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        *inputs, needs, backend = arguments
        packed = self._packed(inputs)
        fake_saved = getattr(dispatch.kernel(self.name, backend), "fake_saved", None)
        return self.fake(*packed), [] if fake_saved is None else fake_saved(*packed, self.needs(needs))

    def _backward(self, grad: Tensor, saved: list[Tensor], *arguments: Any) -> list[Tensor]:
        *inputs, needs, backend = arguments
        kernel = dispatch.kernel(self.name, backend)
        return list(kernel.backward(grad.contiguous(), saved, *self._packed(inputs), self.needs(needs)))

    def _fake_backward(self, grad: Tensor, saved: list[Tensor], *arguments: Any) -> list[Tensor]:
        *inputs, needs, _ = arguments
        found, like = [], inputs[0]
        for x, need in zip(inputs, needs, strict=False):
            like = like if x is None else x
            found.append(torch.empty_like(like) if need else like.new_empty(0))
        return found

    def _autograd_setup(self, ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, list[Tensor]]) -> None:
        *arguments, ctx.needs, ctx.backend = inputs
        out, saved = output
        ctx.scalars = arguments[self.tensors :]
        kept = [out, *saved] if self.saves_output else saved
        ctx.save_for_backward(*arguments[: self.tensors], *kept)

    def _autograd_backward(self, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        inputs, saved = ctx.saved_tensors[: self.tensors], list(ctx.saved_tensors[self.tensors :])
        gradients = self.custom_backward(grad, saved, *inputs, *ctx.scalars, ctx.needs, ctx.backend)
        wanted = [x if need else None for x, need in zip(gradients, ctx.needs, strict=True)]
        return *wanted, *(None,) * (self.tensors - len(wanted) + len(ctx.scalars) + 2)

    def _refuse(self, *arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError(dispatch.first_derivatives_only(self.name))
