"""Labels at the pixels by Bayes' rule (see `infoseg_fast.recipe.refinement`)."""

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-6  # the least prior of a class
CHUNK = 2**14  # pixels worked on at a time: few enough for the cache


def refined_labels(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """argmax_k of `refined_scores` of every pixel, [B, H, W] uint8; of equal classes the lowest."""
    labels = torch.empty(len(prior), *colour.shape[2:], dtype=torch.uint8, device=prior.device)
    for b in range(len(prior)):
        labels[b] = refined_scores(prior[b], colour[b], around[b], residual, log_scale).argmax(dim=0)
    return labels


def refined_probs(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """softmax_k of `refined_scores`, averaged over the pixels of every position: [B, K, h, w]."""
    probs = torch.empty_like(prior)
    for b in range(len(prior)):
        of_pixels = refined_scores(prior[b], colour[b], around[b], residual, log_scale).softmax(dim=0)
        probs[b] = F.adaptive_avg_pool2d(of_pixels, prior.shape[2:])
    return probs


def refined_scores(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """log prior_k + log p(y | s, k) of the pixels of an image, but for a constant.

    Args:
        prior: [K, h, w], of the positions; upsampled bilinearly (align_corners=False).
        colour: y [c, H, W]. around: s [c, h, w], upsampled likewise.
        residual [K, c, 2c + 1], log_scale [K]: of a `Refinement`.

    Returns:
        [K, H, W].
    """
    K, c = residual.shape[:2]
    size = colour.shape[1:]
    maps = F.interpolate(torch.cat([prior, around])[None], size=size, mode="bilinear", align_corners=False)[0]
    scores = maps[:K].flatten(1).clamp(min=FLOOR).log_().add_(log_scale[:, None])
    seen = torch.cat([colour, maps[K:]]).flatten(1)
    matrix, last = residual[..., :-1].flatten(0, 1), residual[..., -1].reshape(-1, 1)
    for part, pixels in zip(scores.split(CHUNK, dim=1), seen.split(CHUNK, dim=1), strict=True):
        part -= torch.addmm(last, matrix, pixels).view(K, c, -1).square_().sum(dim=1) / 2
    return scores.view(K, *size)
