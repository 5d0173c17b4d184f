"""Similarity of local and global features, the assignment made from it, and the moments of its classes."""

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


def fold_projection_gradient(
    dG: Tensor,
    dg0: Tensor | None,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by H, W and b: dH = dG W^T + dg0 b^T, dW = H^T dG, db = H^T dg0, each in its tensor's dtype.

    dG [B, K, C] and dg0 [B, K] are in the accumulation dtype. `needs` says which of the three are wanted; the others
    are None. dG is read for the first two only, dg0 only where there is a bias.
    """
    dtype, H = dG.dtype, global_features.to(dG.dtype).flatten(0, 1)
    dH = dW = db = None
    if needs[0]:
        dH = dG.flatten(0, 1) if weight is None else dG.flatten(0, 1) @ weight.to(dtype).mT
        if bias is not None:
            outer = dg0.flatten(), bias.to(dtype)
            dH = torch.addr(dH, *outer) if weight is None else dH.addr_(*outer)  # the product is dH's own
        dH = dH.view_as(global_features).to(global_features.dtype)
    if needs[1] and weight is not None:
        dW = (H.mT @ dG.flatten(0, 1)).to(weight.dtype)
    if needs[2] and bias is not None:
        db = (H.mT @ dg0.flatten()).to(bias.dtype)
    return dH, dW, db


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


def class_moments(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    statistics: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """sum_{b,p} V[b,k,p] statistics[b,s,p] -> [K, S] in the accumulation dtype, V = softmax_k(tau z) not rounded."""
    z = folded_similarity(features, *fold_projection(global_features, weight, bias))
    return moments_of(torch.softmax(temperature * z, dim=1), statistics)


def moments_of(V: Tensor, statistics: Tensor) -> Tensor:
    """sum_{b,p} V[b,k,p] statistics[b,s,p]. V [B, K, h, w], statistics [B, S, h, w] -> [K, S] in the dtype of V."""
    V, Y = (x.to(V.dtype).transpose(0, 1).flatten(1) for x in (V, statistics))
    return V @ Y.mT
