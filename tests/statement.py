"""The method as the paper states it, forming the local features L and the assigned global features
S.

Independent of the package: no identity is used, and negatives, candidates and means are written as
loops. float64 in, float64 out.
"""

import math

import torch


def softplus(x):
    return torch.log1p(torch.exp(-x.abs())) + x.clamp_min(0)


def local_features(features, weight=None, bias=None):
    """L[b, p, :] = W f + b, as [B, P, D]."""
    L = features.flatten(2).transpose(1, 2)
    if weight is not None:
        L = L @ weight.flatten(1).T
    return L if bias is None else L + bias


def assigned(L, H, temperature):
    """S[p, :] = sum_k V[p, k] H[k], and V, for the positions of one image and the global features
    of one image.
    """
    V = torch.softmax(temperature * (L @ H.T), dim=1)
    return V @ H, V


def loss(features, H, weight=None, bias=None, *, temperature=1.0, estimator="jsd", negatives="same_position",
         num_negatives=1, balance=0.0, mask=None):  # fmt: skip
    L = local_features(features, weight, bias)
    B, K = H.shape[:2]
    valid = torch.ones(L.shape[:2], dtype=torch.bool) if mask is None else mask.flatten(1)
    S, V = zip(*(assigned(L[b], H[b], temperature) for b in range(B)), strict=True)
    positive, negative, contrast = [], [], []
    for b in range(B):
        T = (L[b] * S[b]).sum(1)
        positive.append(softplus(-T)[valid[b]])
        candidates = [L[b] @ H[b].T]
        for j in range(1, num_negatives + 1):
            c = (b + j) % B
            partner = S[c] if negatives == "same_position" else assigned(L[b], H[c], temperature)[0]
            negative.append(softplus((L[b] * partner).sum(1))[valid[b]])
            candidates.append(L[b] @ H[c].T)
        contrast.append((torch.logsumexp(torch.cat(candidates, 1), 1) - T)[valid[b]])
    if estimator == "jsd":
        total = torch.cat(positive).mean() + torch.cat(negative).mean()
    else:
        total = torch.cat(contrast).mean()
    if balance:
        usage = torch.cat([V[b][valid[b]] for b in range(B)]).mean(0)
        total = total + balance * (math.log(K) + (usage * usage.log()).sum())
    return total
