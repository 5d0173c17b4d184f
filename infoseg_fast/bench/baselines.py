"""The best PyTorch we know for each op: identities 1 and 2 of the method in a few large calls, eager or compiled.

Only benchmarks use it. `as_written` is the paper's loss with L and S formed. Every function takes what the public op
takes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..ops.confusion_matrix import counts_and_outside
from ..recipe.appearance import RESOLUTION
from ..reference import accumulation_dtype
from ..reference.refined_labels import FLOOR


def fold(global_features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return global_features @ weight, global_features @ bias


def as_written(features, global_features, weight, bias, *, mask=None, **settings) -> Tensor:
    """jsd, same_position, n = 1, tau = 1: local features L, and the global feature S assigned to every position."""
    L = torch.einsum("dc,bcp->bdp", weight, features.flatten(2)) + bias[:, None]
    V = torch.softmax(torch.einsum("bdp,bkd->bkp", L, global_features), dim=1)
    S = torch.einsum("bkp,bkd->bdp", V, global_features)
    positive, negative = (L * S).sum(1), (L * S.roll(-1, 0)).sum(1)
    return F.softplus(-positive).mean() + F.softplus(negative).mean()


def similarity(features, global_features, weight, bias) -> Tensor:
    G, g0 = fold(global_features, weight, bias)
    return torch.baddbmm(g0[..., None], G, features.flatten(2)).unflatten(2, features.shape[2:])


def assign(features, global_features, weight, bias) -> Tensor:
    return torch.softmax(similarity(features, global_features, weight, bias), dim=1)


def class_moments(features, global_features, weight, bias, *, statistics) -> Tensor:
    V = assign(features, global_features, weight, bias)
    dtype = torch.promote_types(V.dtype, statistics.dtype)
    V, Y = (x.to(dtype).transpose(0, 1).flatten(1) for x in (V, statistics))
    return V @ Y.mT


def appearance_term(features, global_features, weight, bias, *, images, smooth=0) -> Tensor:
    """By autograd through the determinants."""
    y = reference.local_appearance(images, features.shape[2:]).to(accumulation_dtype(features.dtype))
    Y = reference.appearance_statistics(y, None, smooth)
    moments = class_moments(features, global_features, weight, bias, statistics=Y)
    M = torch.cat([moments, Y.sum(dim=(0, 2, 3))[None]]).double()
    n = y.shape[1] + 1
    row, column = torch.triu_indices(n, n, device=M.device)
    place = torch.zeros(n, n, dtype=torch.int64, device=M.device)
    place[row, column] = place[column, row] = torch.arange(len(row), device=M.device)
    floor = torch.full((n,), RESOLUTION**2, dtype=M.dtype, device=M.device)
    floor[0] = 0
    half_log_det = torch.linalg.slogdet((M / M[:, :1])[:, place] + floor.diag())[1] / 2
    return (half_log_det[-1] - M[:-1, 0] @ half_log_det[:-1]).to(moments.dtype)


def segment_and_count(features, global_features, target, weight, bias, *, num_classes, ignore_index=255) -> Tensor:
    labels = segment(features, global_features, weight, bias, size=target.shape[1:])
    return counts_and_outside(labels, target, global_features.shape[1], num_classes, ignore_index)[0]


def segment(features, global_features, weight, bias, *, size) -> Tensor:
    """A convolution, an einsum, F.interpolate of the softmax, argmax: what a user writes."""
    L = F.conv2d(features, weight[..., None, None], bias)
    V = torch.softmax(torch.einsum("bdyx,bkd->bkyx", L, global_features), dim=1)
    return F.interpolate(V, size=size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def refined_labels(*x) -> Tensor:
    return _refined_scores(*x).argmax(1).to(torch.uint8)


def refined_probs(prior, *x) -> Tensor:
    return F.adaptive_avg_pool2d(_refined_scores(prior, *x).softmax(1), prior.shape[2:])


def _refined_scores(prior, colour, around, residual, log_scale) -> Tensor:
    """F.interpolate, a matrix product for the residuals of all classes."""
    K, c = residual.shape[:2]
    prior, around = (
        F.interpolate(x, size=colour.shape[2:], mode="bilinear", align_corners=False) for x in (prior, around)
    )
    seen = torch.cat([colour, around, torch.ones_like(colour[:, :1])], dim=1).flatten(2)
    misfit = (residual.flatten(0, 1) @ seen).square().unflatten(1, (K, c)).sum(dim=2) / 2
    scores = prior.flatten(2).clamp_min(FLOOR).log() + log_scale[:, None] - misfit
    return scores.unflatten(2, colour.shape[2:])


def loss(
    features,
    global_features,
    weight,
    bias,
    *,
    estimator="jsd",
    negatives="same_position",
    num_negatives: int | str = 1,
    balance=0.0,
    mask=None,
) -> Tensor:
    G, g0 = fold(global_features, weight, bias)
    f = features.flatten(2)
    B, K, _ = G.shape
    n = B - 1 if num_negatives == "all" else num_negatives

    def mean(x):  # over dim 0 and the last
        return x.mean() if mask is None else torch.where(mask.flatten(1), x, 0).sum() / mask.sum()

    def penalty(V):
        if not balance:
            return 0
        valid = 1 if mask is None else mask.flatten(1)[:, None]
        usage = (V * valid).sum(dim=(0, 2)) / (V[:, 0].numel() if mask is None else mask.sum())
        return balance * (math.log(K) + torch.xlogy(usage, usage).sum())

    if estimator == "infonce" and n == B - 1:
        q = torch.matmul(G.flatten(0, 1), f) + g0.flatten()[:, None]  # [B, B K, P], every image's classes
        own = torch.arange(B, device=f.device)
        z = q.unflatten(1, (B, K))[own, own]
        V = torch.softmax(z, dim=1)
        return mean(torch.logsumexp(q, dim=1) - (V * z).sum(1)) + penalty(V)
    if estimator == "jsd" and negatives == "same_position" and n == B - 1:
        z = torch.baddbmm(g0[..., None], G, f)
        V = torch.softmax(z, dim=1)
        S = torch.bmm(G.mT, V)  # [B, C, P]: the assigned feature, in feature space
        s0 = (V * g0[..., None]).sum(1)
        T = torch.bmm(f.permute(2, 0, 1), S.permute(2, 1, 0)) + s0.T[:, None]  # [P, own, partner]
        other = ~torch.eye(B, dtype=torch.bool, device=f.device)
        estimate = mean(F.softplus(-(V * z).sum(1))) + torch.where(other, F.softplus(T), 0).sum() / (B * n * f.shape[2])
        return estimate + penalty(V)
    images = [torch.arange(B, device=f.device).roll(-j) for j in range(n + 1)]
    q = torch.baddbmm(
        torch.cat([g0[i] for i in images], 1)[..., None], torch.cat([G[i] for i in images], 1), f
    ).unflatten(1, (n + 1, K))
    z, w = q[:, 0], q[:, 1:]
    V = torch.softmax(z, dim=1)
    T = (V * z).sum(1)
    if estimator == "infonce":
        return mean(torch.logsumexp(q.flatten(1, 2), dim=1) - T) + penalty(V)
    if negatives == "same_position":
        total = mean(F.softplus(-T))
        for j in range(n):
            total = total + mean(F.softplus((V[images[j + 1]] * w[:, j]).sum(1))) / n
        return total + penalty(V)
    R = torch.softmax(w, dim=2)
    return mean(F.softplus(-T)) + mean(F.softplus((R * w).sum(2)).mean(1)) + penalty(V)
