"""Similarity of local and global features."""

from torch import Tensor

from .folding import fold_projection, folded_similarity


def local_global_similarity(
    features: Tensor, global_features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """z[b,k,p] = <L[b,p], H[b,k]> with L = W f + b: [B, K, h, w] in the dtype of `features`."""
    return folded_similarity(features, *fold_projection(global_features, weight, bias)).to(features.dtype)
