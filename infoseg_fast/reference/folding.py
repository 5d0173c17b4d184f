"""The projection of local features, folded into the global features (identity 2 of METHOD)."""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fold_projection(
    global_features: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Project the K global features back instead of P local features forward.

    z = <W f + b, H_k> = <f, W^T H_k> + <b, H_k>, so with G = H W and g0 = H b no local feature is
    formed.

    Args:
        global_features: H, [B, K, D].
        weight: W, [D, C]; None for the identity.
        bias: b, [D]; None for 0.

    Returns:
        G [B, K, C] and g0 [B, K] (None without a bias), in the accumulation dtype.
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
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by H, W and b: dH = dG W^T + dg0 b^T, dW = H^T dG, db = H^T dg0.

    Args:
        dG, dg0: gradients by G [B, K, C] and g0 [B, K], in the accumulation dtype. dG is read for
            dH and dW only, dg0 only where there is a bias.
        needs: which of the three gradients are wanted; the others are None.

    Returns:
        Each gradient in the dtype of its tensor.
    """
    if not any(needs):
        return None, None, None
    dtype, H = dG.dtype, global_features.to(dG.dtype).flatten(0, 1)
    if needs[0] or needs[1]:
        dG = dG.flatten(0, 1)
    dg0 = dg0.flatten() if bias is not None and dg0 is not None else None
    dH = dW = db = None
    if needs[0]:
        dH = dG if weight is None else torch.mm(dG, weight.to(dtype).mT)
        if dg0 is not None:
            outer = dg0, bias.to(dtype)
            dH = torch.addr(dH, *outer) if weight is None else dH.addr_(*outer)  # no one else holds the product
        dH = dH.view_as(global_features).to(global_features.dtype)
    if needs[1] and weight is not None:
        dW = torch.mm(H.mT, dG).to(weight.dtype)
    if needs[2] and dg0 is not None:
        db = torch.mv(H.mT, dg0).to(bias.dtype)
    return dH, dW, db


def folded_similarity(features: Tensor, G: Tensor, g0: Tensor | None) -> Tensor:
    """z[b,k,p] = <f[b,:,p], G[b,k]> + g0[b,k].

    features [B, C, h, w], G [B, K, C] and g0 [B, K] give [B, K, h, w] in the dtype of G.
    """
    z = G @ features.to(G.dtype).flatten(2)
    if g0 is not None:
        z = z + g0[..., None]
    return z.unflatten(2, features.shape[2:])
