"""Labels of pixels, by Bayes' rule."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import parts, recorded

FLOOR = 1e-6  # least prior probability of a class
CHUNK = 2**14  # pixels that are computed together: they fit into the cache


def refined_labels(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """argmax_k of `batch_scores`, [B, H, W] uint8. A tie gives the lowest class."""
    found = [
        batch_scores(prior[i], colour[i], around[i], residual, log_scale).argmax(dim=1).to(torch.uint8)
        for i in parts(prior)
    ]
    return torch.cat(found)


def batch_scores(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """log prior_k + log p(y | s, k) of the pixels up to a constant, [B, K, H, W]. Arguments as in
    `infoseg_fast.ops.refined_labels`.
    """
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
