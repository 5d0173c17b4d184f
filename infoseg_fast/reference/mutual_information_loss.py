"""The mutual-information loss, both estimators, by identities 1 and 2 of the method."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .folding import fold_projection


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact at every x (F.softplus drops e^-x beyond a threshold)."""
    return -F.logsigmoid(-x)


def candidate_images(B: int, num_negatives: int, device: torch.device) -> Tensor:
    """(b + j) mod B for j = 0 (the own image) .. n -> [B, 1 + n]."""
    return (torch.arange(B, device=device)[:, None] + torch.arange(1 + num_negatives, device=device)) % B


def candidate_similarity(features: Tensor, G: Tensor, g0: Tensor | None, num_negatives: int) -> Tensor:
    """q[b,j,k,p] = <L[b,p], H[(b + j) mod B, k]> for j = 0 .. n -> [B, 1 + n, K, P]."""
    image = candidate_images(features.shape[0], num_negatives, features.device)
    q = torch.einsum("bjkc,bcp->bjkp", G[image], features.to(G.dtype).flatten(2))
    return q if g0 is None else q + g0[image][..., None]


def mean_over_valid(x: Tensor, valid: Tensor | None) -> Tensor:
    """The mean of x [B, ..., P] over dimensions 0 and -1, where valid [B, P] is True. NaN if it
    never is.
    """
    if valid is None:
        return x.mean(dim=(0, -1))
    valid = valid.reshape(valid.shape[:1] + (1,) * (x.dim() - 2) + valid.shape[1:])
    return torch.where(valid, x, 0).sum(dim=(0, -1)) / valid.sum()


def class_usage_penalty(usage: Tensor) -> Tensor:
    """log K - entropy(usage) in nats, from the mean assignment [K]: 0 if all classes are used
    equally, log K if only one is used.
    """
    # The clamp keeps the gradient finite for an unused class, where x log x has the slope -inf.
    entropy = -(usage * usage.clamp_min(torch.finfo(usage.dtype).tiny).log()).sum()
    return math.log(len(usage)) - entropy


def mutual_information_loss(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    estimator: str = "jsd",
    negatives: str = "same_position",
    num_negatives: int = 1,
    balance: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss, a scalar in the accumulation dtype. Arguments as in
    `infoseg_fast.mutual_information_loss`, but `num_negatives` is a number.
    """
    G, g0 = fold_projection(global_features, weight, bias)
    return folded_loss(
        features,
        G,
        g0,
        None if mask is None else mask.flatten(1),
        temperature=temperature,
        estimator=estimator,
        negatives=negatives,
        num_negatives=num_negatives,
        balance=balance,
    )


def folded_loss(
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    valid: Tensor | None,
    *,
    temperature: float,
    estimator: str,
    negatives: str,
    num_negatives: int,
    balance: float,
) -> Tensor:
    """The loss from features [B, C, h, w], folded global features G [B, K, C] and g0 [B, K], and
    valid, bool [B, P].
    """
    q = candidate_similarity(features, G, g0, num_negatives)  # [B, 1 + n, K, P]
    z, w = q[:, 0], q[:, 1:]  # own image, partners
    V = torch.softmax(temperature * z, dim=1)  # [B, K, P]
    T_pos = (V * z).sum(dim=1)  # <L, S> = sum_k V_k z_k [B, P]
    if estimator == "jsd":
        partners = candidate_images(features.shape[0], num_negatives, features.device)[:, 1:]
        R = V[partners] if negatives == "same_position" else torch.softmax(temperature * w, dim=2)  # [B, n, K, P]
        T_neg = (R * w).sum(dim=2)  # [B, n, P]
        # Mask after the softplus: sp(0) is not 0.
        loss = mean_over_valid(softplus(-T_pos), valid) + mean_over_valid(softplus(T_neg), valid).mean()
    else:
        loss = mean_over_valid(torch.logsumexp(q.flatten(1, 2), dim=1) - T_pos, valid)
    if balance:
        loss = loss + balance * class_usage_penalty(mean_over_valid(V, valid))
    return loss


def folded_loss_gradient(
    features: Tensor,
    G: Tensor,
    g0: Tensor | None,
    valid: Tensor | None,
    *,
    temperature: float,
    estimator: str,
    negatives: str,
    num_negatives: int,
    balance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `folded_loss` by features, G and g0, written out (identity 3 of METHOD: they have
    rank K). As in the kernels, first the coefficient dq of every similarity is formed, then df, dG
    and dg0 as products with it.
    """
    B, tau = features.shape[0], temperature
    f = features.to(G.dtype).flatten(2)
    image = candidate_images(B, num_negatives, features.device)
    q = candidate_similarity(features, G, g0, num_negatives)
    z, w = q[:, 0], q[:, 1:]
    V = torch.softmax(tau * z, dim=1)
    T_pos = (V * z).sum(dim=1)
    # 1 / M at each of the M valid positions, else 0.
    if valid is None:
        share = torch.full_like(T_pos, 1 / max(T_pos.numel(), 1))
    else:
        share = valid.to(G.dtype) / valid.sum().clamp_min(1)

    dq = torch.zeros_like(q)
    if estimator == "jsd":
        R = V[image[:, 1:]] if negatives == "same_position" else torch.softmax(tau * w, dim=2)
        T_neg = (R * w).sum(dim=2, keepdim=True)
        g_pos = -torch.sigmoid(-T_pos) * share  # [B, P]
        g_neg = torch.sigmoid(T_neg) * share[:, None, None] / num_negatives  # [B, n, 1, P]
        by_softmax = g_neg * tau * R * (w - T_neg)
        dq[:, 1:] = g_neg * R
        if negatives == "same_position":  # R is the softmax of the partner's own z
            dq[:, 0].index_add_(0, image[:, 1:].flatten(), by_softmax.flatten(0, 1))
        else:
            dq[:, 1:] += by_softmax
    else:
        g_pos = -share
        dq += torch.softmax(q.flatten(1, 2), dim=1).view_as(q) * share[:, None, None]
    dq[:, 0] += g_pos[:, None] * V * (1 + tau * (z - T_pos[:, None]))
    if balance:
        usage = mean_over_valid(V, valid)
        tiny = torch.finfo(V.dtype).tiny
        dV = balance * (usage.clamp_min(tiny).log() + (usage >= tiny))[:, None] * share[:, None]
        dq[:, 0] += tau * V * (dV - (V * dV).sum(dim=1, keepdim=True))

    df = torch.einsum("bjkp,bjkc->bcp", dq, G[image]).to(features.dtype).view_as(features)
    dG = torch.zeros_like(G).index_add_(0, image.flatten(), torch.einsum("bjkp,bcp->bjkc", dq, f).flatten(0, 1))
    dg0 = G.new_zeros(G.shape[:2]).index_add_(0, image.flatten(), dq.sum(dim=3).flatten(0, 1))
    return torch.empty_like(features).copy_(df), dG, dg0
