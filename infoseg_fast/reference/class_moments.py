"""Sums of statistics, weighted by class probabilities."""

from torch import Tensor

from .assign import folded_probs
from .folding import fold_projection


def class_moments(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    statistics: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """sum_{b,p} V[b,k,p] Y[b,s,p]: [K, S] in the accumulation dtype, as V = softmax_k(tau z)."""
    return moments_of(folded_probs(features, *fold_projection(global_features, weight, bias), temperature), statistics)


def moments_of(V: Tensor, statistics: Tensor) -> Tensor:
    """sum_{b,p} V[b,k,p] Y[b,s,p] for V [B, K, h, w] and Y [B, S, h, w]: [K, S] in the dtype of V."""
    V, Y = (x.to(V.dtype).transpose(0, 1).flatten(1) for x in (V, statistics))
    return V @ Y.mT
