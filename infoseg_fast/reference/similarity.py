"""Similarity of local and global features, and the assignment made from it."""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fold_projection(
    global_features: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Project the K global features back instead of P local features forward (identity 2 of the method).

    z = <W f + b, H_k> = <f, W^T H_k> + <b, H_k>, so with G = H W and g0 = H b no local feature is ever formed.

    H [B, K, D], W [D, C] or None for the identity, b [D] or None -> G [B, K, C], g0 [B, K] or None, in the
    accumulation dtype.
    """
    dtype = accumulation_dtype(global_features.dtype)
    H = global_features.to(dtype)
    G = H.contiguous() if weight is None else H @ weight.to(dtype)
    g0 = None if bias is None else H @ bias.to(dtype)
    return G, g0


def folded_similarity(features: Tensor, G: Tensor, g0: Tensor | None) -> Tensor:
    """z[b,k,p] = <f[b,:,p], G[b,k]> + g0[b,k]. features [B, C, h, w], G [B, K, C], g0 [B, K] -> [B, K, h, w]."""
    z = G @ features.to(G.dtype).flatten(2)
    if g0 is not None:
        z = z + g0[..., None]
    return z.unflatten(2, features.shape[2:])


def folded_similarity_gradient(grad_z: Tensor, features: Tensor, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features, G and g0: df = G^T dz, dG = dz f^T, dg0 = sum_p dz."""
    dz, f = grad_z.to(G.dtype).flatten(2), features.to(G.dtype).flatten(2)
    df = (G.mT @ dz).to(features.dtype).view_as(features)
    return torch.empty_like(features).copy_(df), dz @ f.mT, dz.sum(dim=2)


def local_global_similarity(
    features: Tensor, global_features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """z[b,k,p] = <L[b,p], H[b,k]> with L = W f + b -> [B, K, h, w] in the dtype of `features`."""
    return folded_similarity(features, *fold_projection(global_features, weight, bias)).to(features.dtype)


def assign(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """V = softmax_k(tau z) -> [B, K, h, w] in the dtype of `features`."""
    z = folded_similarity(features, *fold_projection(global_features, weight, bias))
    return torch.softmax(temperature * z, dim=1).to(features.dtype)
