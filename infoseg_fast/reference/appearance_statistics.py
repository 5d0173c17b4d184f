"""Statistics whose class moments describe the appearance of classes."""

import torch
from torch import Tensor


def appearance_statistics(appearance: Tensor, mask: Tensor | None = None, smooth: int = 0) -> Tensor:
    """Products of (1, y) times the share of the position, after the adjoint of
    `neighbourhood_mean`, with y scaled to mean 0 and variance 1. See
    `infoseg_fast.ops.appearance_statistics`.
    """
    y = appearance
    B, d, h, w = y.shape
    if mask is None:
        share = torch.full((1, 1, 1, 1), 1 / max(B * h * w, 1), dtype=y.dtype, device=y.device)
    else:
        share = mask[:, None].to(y.dtype)
        share = share / share.sum()  # NaN if no position counts
        y = torch.where(mask[:, None], y, 0)  # other positions may hold NaN
    y = y - (y * share).sum(dim=(0, 2, 3), keepdim=True)
    if mask is not None:
        y = torch.where(mask[:, None], y, 0)  # and be far from positions that all are equal
    variance = (y.square() * share).sum(dim=(0, 2, 3), keepdim=True)
    y = y / variance.sqrt().clamp_min(torch.finfo(y.dtype).tiny)
    # Each factor has the root of the share.
    factors = torch.cat([torch.ones_like(y[:, :1]), y], dim=1) * share.sqrt()
    products = torch.cat([factors[:, i : i + 1] * factors[:, i:] for i in range(d + 1)], dim=1)
    if smooth == 0:
        return products
    return _mean_matrix(h, smooth, y).mT @ (products @ _mean_matrix(w, smooth, y))


def _mean_matrix(n: int, radius: int, like: Tensor) -> Tensor:
    """`neighbourhood_mean` along an axis of n positions as a matrix [n, n], a factor from the left."""
    place = torch.arange(n, device=like.device)
    neighbour = (place[:, None] + torch.arange(-radius, radius + 1, device=like.device)).clamp(0, n - 1)
    weights = torch.full_like(neighbour, 1 / (2 * radius + 1), dtype=like.dtype)
    return weights.new_zeros(n, n).scatter_add(1, neighbour, weights)
