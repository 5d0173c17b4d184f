"""What a kernel gets and returns. A leaf: kernels of every backend import it, and it imports torch
alone.

A backend is a module with `unavailable() -> str | None`, the reason why nothing of it can run here,
and `KERNELS: dict[str, Kernel]`, its kernels by the name of their op.

The arguments of a kernel are, in this order, the tensors that a gradient may be wanted by, the
constant tensors, and the settings; `Wiring.schema` of the op lists them. Ops of features get these
[B, C, h, w] in any of four dtypes and any strides, and the folded global features G [B, K, C] and
g0 [B, K] or None, contiguous, in the accumulation dtype (float64 for float64 features, else
float32).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Needs(NamedTuple):
    """Which gradients are wanted of an op of features."""

    features: bool
    G: bool
    g0: bool

    @staticmethod
    def of(wanted: Sequence[bool], bias: Tensor | None) -> "Needs":
        """From the gradients that are wanted of features, H, W and b."""
        features, H, weight, b = wanted
        return Needs(features, H or weight, bias is not None and (H or b))


class Gradients(NamedTuple):
    """Gradients by features, G and g0. A gradient that is not wanted has no elements."""

    features: Tensor
    G: Tensor
    g0: Tensor


class LossSettings(NamedTuple):
    """The arguments of the loss that are not tensors. `num_negatives` is a number, not "all"."""

    temperature: float
    estimator: str
    negatives: str
    num_negatives: int
    balance: float


class Kernel(Protocol):
    """One backend's kernel of an op without gradients."""

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The reason why this kernel cannot take tensors of this kind; None when it can."""

    def forward(self, *arguments: Any) -> Any:
        """The op's result, a tensor or a tuple of tensors."""


class DifferentiableKernel(Kernel, Protocol):
    """One backend's kernel of an op with gradients.

    `needs` has one bool for each tensor that a gradient may be wanted by. These methods are
    optional:

    - `fake_saved(*arguments, needs) -> list[Tensor]`: the shapes of what `forward` saves, for
      kernels that save something;
    - `hand_over(grad, saved) -> Sequence[Tensor]`: for kernels that form the gradient in `forward`
      and save it. It may scale the saved tensors in place, and it is called at most once; a second
      backward pass calls `backward` with nothing saved;
    - `forward_projected(tensors, settings, needs) -> result, kept, layout` and
      `backward_projected(grad, layout, kept, tensors, settings, needs, wanted) -> gradients`: for
      kernels of ops of features that fold the projection themselves. `tensors` are features, H, W,
      b and the constants, with W; the gradients are by the first four.

    A kernel of an op of features without gradients may have `fold(H, W, b) -> G, g0`.
    """

    def forward(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        """The result and what `backward` needs of it. Arguments: those of the op, then `needs`."""

    def backward(self, grad: Tensor, saved: list[Tensor], *arguments: Any) -> Sequence[Tensor]:
        """One gradient for each entry of `needs`, without elements where it is not wanted.

        `grad` is contiguous. `saved` is the list that `forward` returned, after the result itself
        for ops with `Wiring.saves_output`. Arguments: those of the op, then `needs`.
        """


def empty_gradients(features: Tensor, G: Tensor, needs: Needs) -> Gradients:
    """Uninitialised gradients of the wanted shapes; that of the features has their layout. G may
    have been rounded to 16 bits, its gradient is not.
    """
    dtype = torch.float64 if G.dtype == torch.float64 else torch.float32
    return Gradients(
        torch.empty_like(features) if needs.features else features.new_empty(0),
        G.new_empty(G.shape if needs.G else 0, dtype=dtype),
        G.new_empty(G.shape[:2] if needs.g0 else 0, dtype=dtype),
    )
