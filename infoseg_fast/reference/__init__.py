"""Plain PyTorch statements of every op: the meaning that the kernels are verified against, for any dtype and device.

They read like the method's equations and are differentiable to any order. Half-precision inputs are computed in
float32. Symbols: B images, C feature channels, D embedding dimension, K classes, h x w positions (P = h*w), n negatives
per image.
"""

from .appearance import appearance_statistics, information_of_moments, local_appearance, neighbourhood_mean
from .mutual_information import folded_loss, folded_loss_gradient, mutual_information_loss
from .refinement import refined_labels, refined_probs, refined_scores
from .segmentation import confusion_counts, folded_segment, segment, segment_and_count
from .similarity import (
    assign,
    class_moments,
    fold_projection,
    fold_projection_gradient,
    local_global_similarity,
    moments_of,
)

__all__ = [
    "appearance_statistics",
    "assign",
    "class_moments",
    "confusion_counts",
    "fold_projection",
    "fold_projection_gradient",
    "folded_loss",
    "folded_loss_gradient",
    "folded_segment",
    "information_of_moments",
    "local_appearance",
    "local_global_similarity",
    "moments_of",
    "mutual_information_loss",
    "neighbourhood_mean",
    "refined_labels",
    "refined_probs",
    "refined_scores",
    "segment",
    "segment_and_count",
]
