"""The projection of local features, folded into the global features (identity 2 of METHOD)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fold_projection(
    global_features: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Project the K global features back, instead of P local features forward: z = <W f + b, H_k> =
    <f, W^T H_k> + <b, H_k> = <f, G_k> + g0_k with G = H W and g0 = H b.

    Args:
        global_features: H, [B, K, D].
        weight: W, [D, C]. None: the identity.
        bias: b, [D]. None: 0.

    Returns:
        G [B, K, C] and g0 [B, K] (None without a bias), in the accumulation dtype.
    """
    H, weight, bias = _in_dtype(accumulation_dtype(global_features.dtype), global_features, weight, bias)
    G = H.contiguous() if weight is None else H @ weight
    return G, None if bias is None else H @ bias


def _in_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> Sequence[Any]:
    """The tensors in `dtype`. `Tensor.to` is not called if they have it already: on a GPU, Python
    code takes the time of a small product.
    """
    if all(x is None or x.dtype == dtype for x in tensors):
        return tensors
    return [None if x is None else x.to(dtype) for x in tensors]


def fold_projection_gradient(
    dG: Tensor,
    dg0: Tensor | None,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: tuple[bool, ...] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of H, W and b: dH = dG W^T + dg0 b^T, dW = H^T dG, db = H^T dg0.

    Args:
        dG, dg0: gradients of G [B, K, C] and g0 [B, K], in the accumulation dtype. dG is read only
            for dH and dW, dg0 only with a bias.
        global_features, weight, bias: as in `fold_projection`.
        needs: whether each of the three gradients is computed.

    Returns:
        The gradients in the dtypes of their tensors. None: not computed.
    """
    if not any(needs):
        return None, None, None
    H, W, b = _in_dtype(dG.dtype, global_features.flatten(0, 1), weight, bias)
    if needs[0] or needs[1]:
        dG = dG.flatten(0, 1)
    dg0 = dg0.flatten() if bias is not None and dg0 is not None else None
    dH = dW = db = None
    if needs[0]:
        dH = dG if weight is None else torch.mm(dG, W.mT)
        if dg0 is not None:
            # In place, since nothing else refers to the product.
            dH = torch.addr(dH, dg0, b) if weight is None else dH.addr_(dg0, b)
        dH = dH.view_as(global_features)
    if needs[1] and weight is not None:
        dW = torch.mm(H.mT, dG)
    if needs[2] and dg0 is not None:
        db = torch.mv(H.mT, dg0)
    dH, dW, db = _in_dtype(global_features.dtype, dH, dW, db)
    return dH, dW, db


def folded_similarity(features: Tensor, G: Tensor, g0: Tensor | None) -> Tensor:
    """z[b,k,p] = <f[b,:,p], G[b,k]> + g0[b,k], [B, K, h, w] in the dtype of G, from features [B, C,
    h, w], G [B, K, C] and g0 [B, K].
    """
    z = G @ features.to(G.dtype).flatten(2)
    if g0 is not None:
        z = z + g0[..., None]
    return z.unflatten(2, features.shape[2:])
