"""How PyTorch sees the kernels of an op: custom op, fake, gradient, and the direct call outside of
the compiler.

Two ways lead into a kernel. Ordinary tensors outside the compiler take the direct one, a plain call
or an `autograd.Function`, which costs a few tenths of a millisecond less per training step than a
custom op; there a gradient that was formed in the forward pass is handed over without a copy.
Everything that records, compiles or wraps tensors takes the custom ops `infoseg_fast::NAME` and
`infoseg_fast::NAME_backward`.

Kernels have first derivatives only. What they cannot do raises an error that names
`backend="reference"`: second derivatives, `torch.func` transforms, forward mode. `dispatch.select`
makes `backend="auto"` take the reference there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import direct, dispatch
from .protocol import Needs

NAMESPACE = "infoseg_fast"


class Wiring:
    """The custom op of a kernel and the direct call around it.

    Args:
        name: of the op and of its kernels.
        schema: the arguments of the kernel in torch.library's notation. Tensors come first.
        fake: takes these arguments; returns the result with right shapes, dtypes and device.
        differentiable: number of leading tensors that a gradient may be wanted by. With 0, kernels
            return the result alone, and its type is `result`.
        folds: whether the op takes features, H, W and b, whose projection is folded into the
            kernel's features, G and g0.
        saves_output: whether `backward` reads the result.
        settings: a NamedTuple that the kernel takes in place of its fields, which end the schema.
        result: the type of what an op without gradients returns.
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
        """The kernel's `needs`: `wanted` for each tensor, or the same for all."""
        each = [wanted] * self.differentiable if isinstance(wanted, bool) else wanted
        return Needs(*each) if self.folds else tuple(each)

    def __call__(self, backend: str, *arguments: Any) -> Any:
        """The op on checked arguments: the kernel's own, with H, W and b in place of G and g0 if it
        folds.
        """
        number = self.tensors + self.folds
        tensors, settings = arguments[:number], arguments[number:]
        if not dispatch.plain(*tensors):
            return self._call_custom(tensors, settings, backend)
        for x in tensors:
            if x is not None and x.is_neg():  # a view as of torch.imag(x.conj()): kernels read the memory
                tensors = tuple(x if x is None else x.resolve_neg() for x in tensors)
                break
        kernel = dispatch.kernel(self.name, backend)
        if self.differentiable and self.folds and tensors[2] is not None and hasattr(kernel, "forward_projected"):
            return direct.projected(self.name, kernel, tensors, settings)
        if self.differentiable and torch.is_grad_enabled():
            for x in tensors[: self.differentiable + self.folds]:
                if x is not None and x.requires_grad:
                    return direct.Function.apply(self, kernel, settings, *tensors)
        inputs = direct.folded(tensors, kernel) if self.folds else tensors
        if not self.differentiable:
            return kernel.forward(*inputs, *settings)
        return kernel.forward(*inputs, *settings, self.needs(False))[0]

    def _call_custom(self, tensors: Sequence[Any], settings: Sequence[Any], backend: str) -> Any:
        inputs = direct.folded(tensors) if self.folds else tensors
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
        """The kernel's arguments from those of the custom op."""
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
