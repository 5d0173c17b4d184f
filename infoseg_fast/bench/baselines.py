"""The best PyTorch of each op, by the op's name: identities 1 and 2 of the method in a few large
calls.

Only benchmarks use this module. A function has the arguments of the public op. An op without a
function here is compared with its reference.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..reference.refined_labels import FLOOR


def fold(global_features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return global_features @ weight, global_features @ bias


def as_written(features, global_features, weight, bias) -> Tensor:
    """The loss as the paper writes it (jsd, same_position, n = 1, tau = 1), with local features L
    and assigned features S.
    """
    L = torch.einsum("dc,bcp->bdp", weight, features.flatten(2)) + bias[:, None]
    V = torch.softmax(torch.einsum("bdp,bkd->bkp", L, global_features), dim=1)
    S = torch.einsum("bkp,bkd->bdp", V, global_features)
    positive, negative = (L * S).sum(1), (L * S.roll(-1, 0)).sum(1)
    return F.softplus(-positive).mean() + F.softplus(negative).mean()


def local_global_similarity(features, global_features, weight, bias) -> Tensor:
    G, g0 = fold(global_features, weight, bias)
    return torch.baddbmm(g0[..., None], G, features.flatten(2)).unflatten(2, features.shape[2:])


def assign(features, global_features, weight, bias) -> Tensor:
    return torch.softmax(local_global_similarity(features, global_features, weight, bias), dim=1)


def class_moments(features, global_features, weight, bias, *, statistics) -> Tensor:
    V = assign(features, global_features, weight, bias)
    dtype = torch.promote_types(V.dtype, statistics.dtype)
    V, Y = (x.to(dtype).transpose(0, 1).flatten(1) for x in (V, statistics))
    return V @ Y.mT


def segment_and_count(features, global_features, target, weight, bias, *, num_classes, ignore_index=255) -> Tensor:
    labels = segment(features, global_features, weight, bias, size=target.shape[1:])
    return reference.confusion_matrix(labels, target, global_features.shape[1], num_classes, ignore_index)


def segment(features, global_features, weight, bias, *, size) -> Tensor:
    """As a user writes it: a convolution, an einsum, F.interpolate of the softmax, argmax."""
    L = F.conv2d(features, weight[..., None, None], bias)
    V = torch.softmax(torch.einsum("bdyx,bkd->bkyx", L, global_features), dim=1)
    return F.interpolate(V, size=size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def confusion_matrix(pred, target, num_clusters, num_classes, ignore_index=255) -> Tensor:
    """A masked bincount, by numpy on a CPU."""
    if pred.device.type != "cpu":
        return reference.confusion_matrix(pred, target, num_clusters, num_classes, ignore_index)
    pred, target = pred.numpy(), target.numpy()
    counted = target != ignore_index
    cells = pred[counted].astype(np.int64) * num_classes + target[counted]
    return torch.from_numpy(np.bincount(cells, minlength=num_clusters * num_classes)).view(num_clusters, num_classes)


def refined_labels(prior, colour, around, residual, log_scale) -> Tensor:
    """F.interpolate, and one matrix product for the residuals of all classes."""
    K, c = residual.shape[:2]
    prior, around = (
        F.interpolate(x, size=colour.shape[2:], mode="bilinear", align_corners=False) for x in (prior, around)
    )
    seen = torch.cat([colour, around, torch.ones_like(colour[:, :1])], dim=1).flatten(2)
    misfit = (residual.flatten(0, 1) @ seen).square().unflatten(1, (K, c)).sum(dim=2) / 2
    scores = prior.flatten(2).clamp_min(FLOOR).log() + log_scale[:, None] - misfit
    return scores.argmax(1).to(torch.uint8).unflatten(1, colour.shape[2:])


def mutual_information_loss(
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

    def mean(x):  # mean over images and positions
        return x.mean() if mask is None else torch.where(mask.flatten(1), x, 0).sum() / mask.sum()

    def penalty(V):
        if not balance:
            return 0
        valid = 1 if mask is None else mask.flatten(1)[:, None]
        usage = (V * valid).sum(dim=(0, 2)) / (V[:, 0].numel() if mask is None else mask.sum())
        return balance * (math.log(K) + torch.xlogy(usage, usage).sum())

    if estimator == "infonce" and n == B - 1:
        q = torch.matmul(G.flatten(0, 1), f) + g0.flatten()[:, None]  # [B, B K, P]: the classes of every image
        own = torch.arange(B, device=f.device)
        z = q.unflatten(1, (B, K))[own, own]
        V = torch.softmax(z, dim=1)
        return mean(torch.logsumexp(q, dim=1) - (V * z).sum(1)) + penalty(V)
    if estimator == "jsd" and negatives == "same_position" and n == B - 1:
        z = torch.baddbmm(g0[..., None], G, f)
        V = torch.softmax(z, dim=1)
        S = torch.bmm(G.mT, V)  # [B, C, P]: the assigned global feature, in feature space
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
