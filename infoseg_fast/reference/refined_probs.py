"""Class probabilities of positions from their pixels, by Bayes' rule."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .refined_labels import batch_scores
from .tracing import parts


def refined_probs(prior: Tensor, colour: Tensor, around: Tensor, residual: Tensor, log_scale: Tensor) -> Tensor:
    """softmax_k of the scores of `refined_labels`, averaged over the pixels of every position: [B,
    K, h, w].
    """
    size = tuple(prior.shape[2:])
    found = [
        F.adaptive_avg_pool2d(batch_scores(prior[i], colour[i], around[i], residual, log_scale).softmax(dim=1), size)
        for i in parts(prior)
    ]
    return torch.cat(found)
