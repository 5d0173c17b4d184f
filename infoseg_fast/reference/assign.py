"""Class probabilities of positions."""

import torch
from torch import Tensor

from .folding import fold_projection, folded_similarity


def folded_probs(features: Tensor, G: Tensor, g0: Tensor | None, temperature: float) -> Tensor:
    """V = softmax_k(tau z) from folded global features: [B, K, h, w] in the dtype of G."""
    return torch.softmax(temperature * folded_similarity(features, G, g0), dim=1)


def assign(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """V = softmax_k(tau z): [B, K, h, w] in the dtype of `features`."""
    return folded_probs(features, *fold_projection(global_features, weight, bias), temperature).to(features.dtype)
