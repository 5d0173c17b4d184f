"""The appearance of positions, and what the moments of the classes are sums of (`infoseg_fast.recipe.appearance`)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DARK = 0.05  # added to intensities in [0, 1] before the logarithm: differences in the dark are mostly noise
FLAT = 1e-3  # added to the trace, the energy of the gradient, whose squares are of the same scale


def local_appearance(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Logarithms of the channels' means, then of the structure tensor T of the logarithmic brightness the logarithm of
    its trace and its coherence.

    T = ((uu, uv), (uv, vv)), means of the products of the steps u and v along the diagonals of 2 x 2 pixels, over 3 x 3
    cells, has eigenvalues of sum uu + vv and difference sqrt((uu - vv)^2 + (2 uv)^2); the coherence is their quotient.
    (Steps to the right and down would share a pixel, and find a direction in white noise.)
    """
    images = images.float()
    colour = (F.adaptive_avg_pool2d(images, size) + DARK).log()
    # The mean of the channels' logarithms is that of their product.
    brightness = (images + DARK).prod(dim=1, keepdim=True).log() / images.shape[1]
    u = brightness[..., 1:, 1:] - brightness[..., :-1, :-1]
    v = brightness[..., :-1, 1:] - brightness[..., 1:, :-1]
    tensor = F.pad(torch.cat([u.square() + v.square(), u.square() - v.square(), 2 * u * v], dim=1), (0, 1, 0, 1))
    trace, difference, twice_uv = neighbourhood_mean(F.adaptive_avg_pool2d(tensor, size), 1).split(1, dim=1)
    coherence = (difference.square() + twice_uv.square()).sqrt() / (trace + FLAT)
    return torch.cat([colour, (trace + FLAT).log(), coherence], dim=1)


def neighbourhood_mean(maps: Tensor, radius: int) -> Tensor:
    """Means over 2 radius + 1 positions each way of [B, K, h, w]; beyond the border the last ones are repeated."""
    if radius == 0:
        return maps
    maps = F.pad(maps, (radius,) * 4, mode="replicate")
    # Sums of shifted maps, one axis after the other: on a CPU many times faster than avg_pool2d.
    for dim in (2, 3):
        size = maps.shape[dim] - 2 * radius
        total = maps.narrow(dim, 0, size).clone()
        for i in range(1, 2 * radius + 1):
            total += maps.narrow(dim, i, size)
        maps = total
    return maps / (2 * radius + 1) ** 2


def appearance_statistics(appearance: Tensor, mask: Tensor | None, smooth: int) -> Tensor:
    """The products of (1, y), y scaled to mean 0 and variance 1, by the shares, through the adjoint of the mean."""
    y = appearance
    B, d, h, w = y.shape
    if mask is None:
        share = torch.full((1, 1, 1, 1), 1 / max(B * h * w, 1), dtype=y.dtype, device=y.device)
    else:
        share = mask[:, None].to(y.dtype)
        share = share / share.sum()  # NaN when no position counts
    y = y - (y * share).sum(dim=(0, 2, 3), keepdim=True)
    variance = (y.square() * share).sum(dim=(0, 2, 3), keepdim=True)
    y = y / variance.sqrt().clamp_min(torch.finfo(y.dtype).tiny)
    # Each factor has the root of the share.
    factors = torch.cat([torch.ones_like(y[:, :1]), y], dim=1) * share.sqrt()
    products = torch.cat([factors[:, i : i + 1] * factors[:, i:] for i in range(d + 1)], dim=1)
    if smooth == 0:
        return products
    return _mean_matrix(h, smooth, y).mT @ (products @ _mean_matrix(w, smooth, y))


def _mean_matrix(n: int, radius: int, like: Tensor) -> Tensor:
    """`neighbourhood_mean` along one axis of n positions as a matrix [n, n] that multiplies from the left."""
    place = torch.arange(n, device=like.device)
    neighbour = (place[:, None] + torch.arange(-radius, radius + 1, device=like.device)).clamp(0, n - 1)
    weights = like.new_full(neighbour.shape, 1 / (2 * radius + 1))
    return like.new_zeros(n, n).scatter_add_(1, neighbour, weights)


def information_of_moments(
    moments: Tensor, total: Tensor, resolution: float, gradient_wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The mutual information of class and appearance, and its gradient by the moments, None where it is not wanted.

    With the moments of a class as a symmetric matrix M [d + 1, d + 1], pi its corner, and R = diag(0, 1 .. 1),

        Q = M / pi + r^2 R,  log det(S_k + r^2) = log det Q_k
        I = 1/2 log det Q of all positions - sum_k pi_k / 2 log det Q_k
        dI / dM_k = -Q_k^-1 / 2, and by the corner besides -log det Q_k / 2 + (d + 1 - r^2 trace(R Q_k^-1)) / 2

    in float64, since a tight class is nearly singular.
    """
    n = (math.isqrt(8 * moments.shape[1] + 1) - 1) // 2  # d + 1
    row, column = torch.triu_indices(n, n, device=moments.device)
    place = torch.empty(n, n, dtype=torch.int64, device=moments.device)
    place[row, column] = place[column, row] = torch.arange(len(row), device=moments.device)
    M = torch.cat([moments, total[None]]).double()
    # Of a class that has no positions all moments are 0, and Q is R with the corner of the others.
    Q = (M / M[:, :1].clamp_min(torch.finfo(moments.dtype).tiny))[:, place]
    Q[:, 0, 0] = 1
    Q.diagonal(dim1=1, dim2=2)[:, 1:] += resolution**2
    half_log_det = torch.linalg.slogdet(Q)[1] / 2
    gradient = None
    if gradient_wanted:
        inverse = torch.linalg.inv_ex(Q[:-1])[0]
        corner = (n - resolution**2 * inverse.diagonal(dim1=1, dim2=2)[:, 1:].sum(dim=1)) / 2 - half_log_det[:-1]
        # A product off the diagonal stands for two elements of M.
        gradient = inverse[:, row, column] * torch.where(row == column, -0.5, -1.0)
        gradient[:, 0] += corner
        gradient = gradient.to(moments.dtype)
    value = half_log_det[-1] - M[:-1, 0] @ half_log_det[:-1]
    return value.to(moments.dtype), gradient
