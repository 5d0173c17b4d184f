"""The mutual information of class and appearance, from the moments of the classes."""

import math

import torch
from torch import Tensor


def information_of_moments(moments: Tensor, total: Tensor, resolution: float) -> Tensor:
    """The information I in nats, a scalar in the dtype of the moments.

    With the moments of a class as a symmetric matrix M [d + 1, d + 1], its corner pi, and
    R = diag(0, 1 .. 1),

        Q = M / pi + r^2 R,  log det(S_k + r^2) = log det Q_k
        I = 1/2 log det Q - sum_k pi_k / 2 log det Q_k

    where Q without index is that of all positions. It is computed in float64, since the matrix of a
    class of one colour is nearly singular. A kernel forms the derivative dI / dM_k = -Q_k^-1 / 2.
    That of the corner has in addition

        -log det Q_k / 2 + (d + 1 - r^2 trace(R Q_k^-1)) / 2
    """
    M = torch.cat([moments, total[None]]).double()
    share, half_log_det = half_log_dets(M, resolution, torch.finfo(moments.dtype).tiny)
    return (half_log_det[-1] - share[:-1] @ half_log_det[:-1]).to(moments.dtype)


def symmetric_places(n: int, device: torch.device) -> Tensor:
    """For each entry of a symmetric matrix its index in the upper triangle, row by row: int64 [n, n]."""
    row, column = torch.triu_indices(n, n, device=device)
    places = torch.empty(n, n, dtype=torch.int64, device=device)
    places[row, column] = places[column, row] = torch.arange(len(row), device=device)
    return places


def half_log_dets(moments: Tensor, resolution: float, least_share: float) -> tuple[Tensor, Tensor]:
    """pi_k and 1/2 log det(S_k + r^2) of classes with moments [..., S], two tensors [...]."""
    n = (math.isqrt(8 * moments.shape[-1] + 1) - 1) // 2  # d + 1
    # A clamped share has the derivative of the share, so that a class without positions has the
    # derivative of the formula. All moments of such a class are 0: its Q is r^2 R with corner 1.
    share = moments[..., :1]
    share = share + (share.clamp_min(least_share) - share).detach()
    corner = torch.zeros(n, n, dtype=torch.bool, device=moments.device)
    corner[0, 0] = True
    floor = torch.full((n,), resolution**2, dtype=moments.dtype, device=moments.device)
    Q = torch.where(corner, 1.0, (moments / share)[..., symmetric_places(n, moments.device)] + floor.diag())
    return share[..., 0], torch.linalg.slogdet(Q)[1] / 2
