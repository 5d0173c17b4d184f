"""The ops as PyTorch sees them: schema, fake kernel and gradient of each, around the kernels of a backend.

A kernel gets features [B, C, h, w] in any of four dtypes and any strides, and the folded global features G [B, K, C]
and g0 [B, K] or None, contiguous, in the accumulation dtype (float64 for float64 features, else float32). Its methods:

- local_global_similarity: `forward(features, G, g0) -> z`, `backward(grad_z, features, G, needs) -> Gradients`;
- assign: `forward(features, G, g0, temperature) -> V`, `backward(grad_V, V, features, G, temperature, needs)
  -> Gradients`;
- class_moments: `forward(features, G, g0, statistics, temperature, keep) -> (moments, V)` with statistics and moments
  in the accumulation dtype, V kept for going back, or with no elements where `keep` says that nothing will; and
  `backward(grad_moments, V, statistics, features, G, temperature, needs) -> Gradients`;
- segment: `forward(features, G, g0, temperature, size, interpolate) -> labels`;
- segment_and_count (optional): `forward(features, G, g0, target, temperature, interpolate, num_classes, ignore_index,
  labels_wanted) -> (counts, outside, labels)` for a uint8 target: `outside`, int64 [], counts the pixels whose target
  is out of range, for which a kernel on the CPU raises instead; labels have no elements where they are not wanted;
- mutual_information_loss: `forward(features, G, g0, valid, settings, needs) -> (loss, state)`, `fake_state` with the
  same arguments, `backward(grad_loss, features, G, g0, valid, state, settings, needs) -> Gradients`.

`needs` says which gradients are wanted; the others are returned with no elements. What the loss keeps for going back is
its `state`, a list of tensors of its own choosing: statistics to recompute from, nothing, or the gradient itself for
upstream 1. A kernel of the last kind also has `hand_over(grad_loss, state) -> Gradients`, which may scale the state in
place and is called once; going back again calls `backward` with no state.

"reference" is among the backends here so that this wiring is tested by itself; the public functions call the reference
as plain PyTorch, which is differentiable to any order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.mutual_information import folded_loss, folded_loss_gradient
from ..reference.segmentation import folded_segment
from ..reference.similarity import folded_similarity, folded_similarity_gradient, moments_of
from . import dispatch


class Needs(NamedTuple):
    """Which gradients are wanted."""

    features: bool
    G: bool
    g0: bool


class Gradients(NamedTuple):
    """Gradients by features, G and g0, each with no elements where it is not wanted."""

    features: Tensor
    G: Tensor
    g0: Tensor


@dataclass(frozen=True)
class LossSettings:
    """The arguments of the loss that are not tensors; `num_negatives` is a number."""

    temperature: float
    estimator: str
    negatives: str
    num_negatives: int
    balance: float


def empty_gradients(features: Tensor, G: Tensor, needs: Needs) -> Gradients:
    """Uninitialised gradients of the wanted shapes; that of the features has their layout."""
    return Gradients(
        torch.empty_like(features) if needs.features else features.new_empty(0),
        torch.empty_like(G) if needs.G else G.new_empty(0),
        G.new_empty(G.shape[:2]) if needs.g0 else G.new_empty(0),
    )


def _wanted(gradients: Gradients, needs: Needs) -> list[Tensor | None]:
    return [x if wanted else None for x, wanted in zip(gradients, needs, strict=True)]


def _kernel(op: str, backend: str):
    return REFERENCE[op] if backend == "reference" else dispatch.kernel(op, backend)


# local_global_similarity


@torch.library.custom_op("infoseg_fast::local_global_similarity", mutates_args=())
def local_global_similarity(features: Tensor, G: Tensor, g0: Tensor | None, backend: str) -> Tensor:
    return _kernel("local_global_similarity", backend).forward(features, G, g0)


@local_global_similarity.register_fake
def _(features, G, g0, backend):
    return features.new_empty(features.shape[0], G.shape[1], *features.shape[2:])


@torch.library.custom_op("infoseg_fast::local_global_similarity_backward", mutates_args=())
def local_global_similarity_backward(
    grad_z: Tensor, features: Tensor, G: Tensor, need_features: bool, need_G: bool, need_g0: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    needs = Needs(need_features, need_G, need_g0)
    return tuple(_kernel("local_global_similarity", backend).backward(grad_z.contiguous(), features, G, needs))


@local_global_similarity_backward.register_fake
def _(grad_z, features, G, need_features, need_G, need_g0, backend):
    return tuple(empty_gradients(features, G, Needs(need_features, need_G, need_g0)))


def _similarity_setup(ctx, inputs, output):
    features, G, _, ctx.backend = inputs
    ctx.save_for_backward(features, G)


def _similarity_backward(ctx, grad_z):
    features, G = ctx.saved_tensors
    needs = Needs(*ctx.needs_input_grad[:3])
    gradients = Gradients(*local_global_similarity_backward(grad_z, features, G, *needs, ctx.backend))
    return *_wanted(gradients, needs), None


local_global_similarity.register_autograd(_similarity_backward, setup_context=_similarity_setup)


# assign


@torch.library.custom_op("infoseg_fast::assign", mutates_args=())
def assign(features: Tensor, G: Tensor, g0: Tensor | None, temperature: float, backend: str) -> Tensor:
    return _kernel("assign", backend).forward(features, G, g0, temperature)


@assign.register_fake
def _(features, G, g0, temperature, backend):
    return features.new_empty(features.shape[0], G.shape[1], *features.shape[2:])


@torch.library.custom_op("infoseg_fast::assign_backward", mutates_args=())
def assign_backward(
    grad_V: Tensor,
    V: Tensor,
    features: Tensor,
    G: Tensor,
    temperature: float,
    need_features: bool,
    need_G: bool,
    need_g0: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = Needs(need_features, need_G, need_g0)
    return tuple(_kernel("assign", backend).backward(grad_V.contiguous(), V, features, G, temperature, needs))


@assign_backward.register_fake
def _(grad_V, V, features, G, temperature, need_features, need_G, need_g0, backend):
    return tuple(empty_gradients(features, G, Needs(need_features, need_G, need_g0)))


def _assign_setup(ctx, inputs, output):
    features, G, _, ctx.temperature, ctx.backend = inputs
    ctx.save_for_backward(features, G, output)


def _assign_backward(ctx, grad_V):
    features, G, V = ctx.saved_tensors
    needs = Needs(*ctx.needs_input_grad[:3])
    gradients = Gradients(*assign_backward(grad_V, V, features, G, ctx.temperature, *needs, ctx.backend))
    return *_wanted(gradients, needs), None, None


assign.register_autograd(_assign_backward, setup_context=_assign_setup)


# class_moments


@torch.library.custom_op("infoseg_fast::class_moments", mutates_args=())
def class_moments(
    features: Tensor, G: Tensor, g0: Tensor | None, statistics: Tensor, temperature: float, keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return _kernel("class_moments", backend).forward(features, G, g0, statistics, temperature, keep)


@class_moments.register_fake
def _(features, G, g0, statistics, temperature, keep, backend):
    K = G.shape[1]
    V = features.new_empty((features.shape[0], K, *features.shape[2:]) if keep else 0)
    return G.new_empty(K, statistics.shape[1]), V


@torch.library.custom_op("infoseg_fast::class_moments_backward", mutates_args=())
def class_moments_backward(
    grad_moments: Tensor,
    V: Tensor,
    statistics: Tensor,
    features: Tensor,
    G: Tensor,
    temperature: float,
    need_features: bool,
    need_G: bool,
    need_g0: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = Needs(need_features, need_G, need_g0)
    kernel = _kernel("class_moments", backend)
    return tuple(kernel.backward(grad_moments.contiguous(), V, statistics, features, G, temperature, needs))


@class_moments_backward.register_fake
def _(grad_moments, V, statistics, features, G, temperature, need_features, need_G, need_g0, backend):
    return tuple(empty_gradients(features, G, Needs(need_features, need_G, need_g0)))


def _moments_setup(ctx, inputs, output):
    features, G, _, statistics, ctx.temperature, _, ctx.backend = inputs
    ctx.save_for_backward(features, G, statistics, output[1])
    ctx.mark_non_differentiable(output[1])


def _moments_backward(ctx, grad_moments, grad_V):
    features, G, statistics, V = ctx.saved_tensors
    needs = Needs(*ctx.needs_input_grad[:3])
    gradients = Gradients(
        *class_moments_backward(grad_moments, V, statistics, features, G, ctx.temperature, *needs, ctx.backend)
    )
    return *_wanted(gradients, needs), None, None, None, None


class_moments.register_autograd(_moments_backward, setup_context=_moments_setup)


# segment (no gradient)


@torch.library.custom_op("infoseg_fast::segment", mutates_args=())
def segment(
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    temperature: float,
    rows: int,
    columns: int,
    interpolate: str,
    backend: str,
) -> Tensor:
    return _kernel("segment", backend).forward(features, G, g0, temperature, (rows, columns), interpolate)


@segment.register_fake
def _(features, G, g0, temperature, rows, columns, interpolate, backend):
    return features.new_empty(features.shape[0], rows, columns, dtype=torch.uint8)


@torch.library.custom_op("infoseg_fast::segment_and_count", mutates_args=())
def segment_and_count(
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    target: Tensor,
    temperature: float,
    interpolate: str,
    num_classes: int,
    ignore_index: int | None,
    labels_wanted: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _kernel("segment_and_count", backend).forward(
        features, G, g0, target.contiguous(), temperature, interpolate, num_classes, ignore_index, labels_wanted
    )


@segment_and_count.register_fake
def _(features, G, g0, target, temperature, interpolate, num_classes, ignore_index, labels_wanted, backend):
    labels = torch.empty_like(target) if labels_wanted else target.new_empty(0)
    counts = features.new_empty(G.shape[1], num_classes, dtype=torch.int64)
    return counts, counts.new_empty(()), labels


# mutual_information_loss


@torch.library.custom_op("infoseg_fast::mutual_information_loss", mutates_args=())
def mutual_information_loss(
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    valid: Tensor | None,
    temperature: float,
    estimator: str,
    negatives: str,
    num_negatives: int,
    balance: float,
    need_features: bool,
    need_G: bool,
    need_g0: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    settings = LossSettings(temperature, estimator, negatives, num_negatives, balance)
    needs = Needs(need_features, need_G, need_g0)
    return _kernel("mutual_information_loss", backend).forward(features, G, g0, valid, settings, needs)


@mutual_information_loss.register_fake
def _(features, G, g0, valid, temperature, estimator, negatives, num_negatives, balance, *needs_and_backend):
    *needs, backend = needs_and_backend
    settings = LossSettings(temperature, estimator, negatives, num_negatives, balance)
    kernel = _kernel("mutual_information_loss", backend)
    return G.new_empty(()), kernel.fake_state(features, G, g0, valid, settings, Needs(*needs))


@torch.library.custom_op("infoseg_fast::mutual_information_loss_backward", mutates_args=())
def mutual_information_loss_backward(
    grad_loss: Tensor,
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    valid: Tensor | None,
    state: list[Tensor],
    temperature: float,
    estimator: str,
    negatives: str,
    num_negatives: int,
    balance: float,
    need_features: bool,
    need_G: bool,
    need_g0: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    settings = LossSettings(temperature, estimator, negatives, num_negatives, balance)
    needs = Needs(need_features, need_G, need_g0)
    kernel = _kernel("mutual_information_loss", backend)
    return tuple(kernel.backward(grad_loss, features, G, g0, valid, state, settings, needs))


@mutual_information_loss_backward.register_fake
def _(grad_loss, features, G, g0, valid, state, *settings_needs_backend):
    return tuple(empty_gradients(features, G, Needs(*settings_needs_backend[-4:-1])))


def _loss_setup(ctx, inputs, output):
    features, G, g0, valid, *ctx.settings, need_features, need_G, need_g0, ctx.backend = inputs
    ctx.needs = Needs(need_features, need_G, need_g0)
    ctx.save_for_backward(features, G, g0, valid, *output[1])


def _loss_backward(ctx, grad_loss, grad_state):
    features, G, g0, valid, *state = ctx.saved_tensors
    gradients = Gradients(
        *mutual_information_loss_backward(
            grad_loss, features, G, g0, valid, state, *ctx.settings, *ctx.needs, ctx.backend
        )
    )
    return *_wanted(gradients, ctx.needs), *(None,) * 10


mutual_information_loss.register_autograd(_loss_backward, setup_context=_loss_setup)


# The reference as a kernel. Autograd records nothing inside a custom op, so its gradients are those of identity 3.


class _ReferenceSimilarity:
    def forward(self, features, G, g0):
        return folded_similarity(features, G, g0).to(features.dtype)

    def backward(self, grad_z, features, G, needs):
        return _only(needs, *folded_similarity_gradient(grad_z, features, G))


class _ReferenceAssign:
    def forward(self, features, G, g0, temperature):
        return torch.softmax(temperature * folded_similarity(features, G, g0), dim=1).to(features.dtype)

    def backward(self, grad_V, V, features, G, temperature, needs):
        V, grad_V = V.to(G.dtype), grad_V.to(G.dtype)
        grad_z = temperature * V * (grad_V - (V * grad_V).sum(dim=1, keepdim=True))
        return _only(needs, *folded_similarity_gradient(grad_z, features, G))


class _ReferenceClassMoments(_ReferenceAssign):
    def forward(self, features, G, g0, statistics, temperature, keep):
        V = torch.softmax(temperature * folded_similarity(features, G, g0), dim=1)
        return moments_of(V, statistics), V.to(features.dtype) if keep else features.new_empty(0)

    def backward(self, grad_moments, V, statistics, features, G, temperature, needs):
        grad_V = torch.einsum("ks,bshw->bkhw", grad_moments, statistics)
        return super().backward(grad_V, V, features, G, temperature, needs)


class _ReferenceSegment:
    def forward(self, features, G, g0, temperature, size, interpolate):
        return folded_segment(features, G, g0, temperature=temperature, size=size, interpolate=interpolate)


class _ReferenceLoss:
    def forward(self, features, G, g0, valid, settings, needs):
        return folded_loss(features, G, g0, valid, **vars(settings)), []

    def fake_state(self, features, G, g0, valid, settings, needs):
        return []

    def backward(self, grad_loss, features, G, g0, valid, state, settings, needs):
        found = folded_loss_gradient(features, G, g0, valid, **vars(settings))
        return _only(needs, *((grad_loss * x).to(x.dtype) for x in found))


def _only(needs: Needs, *found: Tensor) -> Gradients:
    return Gradients(*(x if need else x.new_empty(0) for x, need in zip(found, needs, strict=True)))


REFERENCE = {
    "local_global_similarity": _ReferenceSimilarity(),
    "assign": _ReferenceAssign(),
    "class_moments": _ReferenceClassMoments(),
    "segment": _ReferenceSegment(),
    "mutual_information_loss": _ReferenceLoss(),
}
