"""What a kernel gets and what it returns. This module imports torch alone, and kernels of every
backend import it.

A backend is a module with two names:

- `unavailable() -> str | None`: the reason why none of its kernels can run here, or None;
- `KERNELS: dict[str, Kernel]`: its kernels by the name of their op.

A kernel gets the tensors that may have a gradient, then the constant tensors, then the settings.
`Wiring.schema` of the op lists them. The first tensors of an op of features are

- features: [B, C, h, w], float32, float64, bfloat16 or float16, any strides;
- G: the folded global features, [B, K, C], contiguous;
- g0: [B, K], contiguous, or None without a bias.

G and g0 are float64 for float64 features, else float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Needs(NamedTuple):
    """Whether each gradient of an op of features is wanted."""

    features: bool
    G: bool
    g0: bool

    @staticmethod
    def of(wanted: Sequence[bool], bias: Tensor | None) -> "Needs":
        """The needs if gradients by features, H, W and b are wanted. `bias` is b."""
        features, H, weight, b = wanted
        return Needs(features, H or weight, bias is not None and (H or b))


class Gradients(NamedTuple):
    """Gradients by features, G and g0. A gradient that is not wanted has no elements."""

    features: Tensor
    G: Tensor
    g0: Tensor


class LossSettings(NamedTuple):
    """The settings of the loss. `num_negatives` is a number, not "all"."""

    temperature: float
    estimator: str
    negatives: str
    num_negatives: int
    balance: float


class Kernel(Protocol):
    """One backend's kernel of an op without gradients.

    A kernel of an op of features may have a method `fold(H, W, b) -> G, g0`. It replaces
    `reference.fold_projection` in a direct call.
    """

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The reason why this kernel cannot take tensors of this device type and dtype, or None."""

    def forward(self, *arguments: Any) -> Any:
        """The result of the op, a tensor or a tuple of tensors."""


class DifferentiableKernel(Kernel, Protocol):
    """One backend's kernel of an op with gradients.

    `needs` has one bool for each tensor that may have a gradient. A kernel may have more methods:

    - `fake_saved(*arguments, needs) -> list[Tensor]` returns uninitialised tensors like those that
      `forward` saves. Kernels that save something must have it.
    - `hand_over(grad, saved) -> Sequence[Tensor]` returns the gradients of a kernel that forms them
      in `forward` and saves them. It may scale the saved tensors in place, and it is called at most
      once. A second backward pass calls `backward` with nothing saved.
    - `forward_projected(tensors, settings, wanted) -> result, kept, layout` and
      `backward_projected(grad, layout, kept, tensors, settings, wanted) -> gradients` replace
      `forward` and `backward` where there is a weight. `tensors` are features, H, W, b (or None)
      and the constants, with H, W and b contiguous. `wanted` and the gradients have one entry for
      each of the first four; a gradient that is not wanted is None. `kept` are the tensors, and
      `layout` is the object, that the backward pass needs.
    """

    def forward(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        """The result and the tensors that `backward` needs. Arguments: those of the op, then
        `needs`.
        """

    def backward(self, grad: Tensor, saved: list[Tensor], *arguments: Any) -> Sequence[Tensor]:
        """One gradient for each entry of `needs`, without elements where it is not wanted.

        `grad` is contiguous. `saved` is the list that `forward` returned. The result precedes it
        for ops with `Wiring.saves_output`. Arguments: those of the op, then `needs`.
        """


def empty_gradients(features: Tensor, G: Tensor, needs: Needs) -> Gradients:
    """Uninitialised gradients. That of the features has their strides. Those of G and g0 are float32
    or float64, even if G was rounded to 16 bits.
    """
    dtype = torch.float64 if G.dtype == torch.float64 else torch.float32
    return Gradients(
        torch.empty_like(features) if needs.features else features.new_empty(0),
        G.new_empty(G.shape if needs.G else 0, dtype=dtype),
        G.new_empty(G.shape[:2] if needs.g0 else 0, dtype=dtype),
    )
