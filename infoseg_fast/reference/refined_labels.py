"""Labels of pixels, by Bayes' rule."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import parts, recorded

FLOOR = 1e-6  # the least prior probability of a class
CHUNK = 2**14  # pixels computed at a time, few enough for the cache


def refined_labels(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """argmax_k of `refined_scores` of every pixel, [B, H, W] uint8; of equal classes the lowest."""
    found = [
        batch_scores(prior[i], colour[i], around[i], residual, log_scale).argmax(dim=1).to(torch.uint8)
        for i in parts(prior)
    ]
    return torch.cat(found)


def refined_scores(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """log prior_k + log p(y | s, k) of the pixels of one image, up to a constant: [K, H, W].

    Args:
        prior: [K, h, w] of the positions; upsampled bilinearly (align_corners=False).
        colour: y, [c, H, W].
        around: s, [c, h, w], upsampled as the prior is.
        residual, log_scale: [K, c, 2c + 1] and [K]; log p(y | s, k) = log_scale
            - 1/2 |residual (y, s, 1)|^2 + const.
    """
    return batch_scores(prior[None], colour[None], around[None], residual, log_scale)[0]


def batch_scores(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """`refined_scores` of a batch: [B, K, H, W]."""
    K, c = residual.shape[:2]
    size = tuple(colour.shape[2:])
    maps = F.interpolate(torch.cat([prior, around], dim=1), size=size, mode="bilinear", align_corners=False)
    log_prior = maps[:, :K].flatten(2).clamp(min=FLOOR).log() + log_scale[:, None]
    seen = torch.cat([colour, maps[:, K:]], dim=1).flatten(2)
    matrix, last = residual[..., :-1].flatten(0, 1), residual[..., -1].reshape(-1, 1)

    def scores(log_prior: Tensor, pixels: Tensor) -> Tensor:
        return log_prior - (last + matrix @ pixels).unflatten(1, (K, c)).square().sum(dim=2) / 2

    if recorded():
        return scores(log_prior, seen).unflatten(2, size)
    chunks = zip(log_prior.split(CHUNK, dim=2), seen.split(CHUNK, dim=2), strict=True)
    return torch.cat([scores(*chunk) for chunk in chunks], dim=2).unflatten(2, size)
