"""Plain PyTorch versions of all ops, for any dtype and device. Kernels are verified against them.

They follow the equations of the method and are differentiable to any order. They compute in float32
for half-precision inputs. Symbols: B images, C feature channels, D embedding dimension, K classes,
h x w positions (P = h w), n negatives per image.
"""

from .appearance_statistics import appearance_statistics
from .assign import assign
from .class_moments import class_moments, moments_of
from .confusion_matrix import confusion_matrix
from .folding import accumulation_dtype, fold_projection, fold_projection_gradient
from .information_of_moments import information_of_moments
from .linear_sum_assignment import linear_sum_assignment
from .local_appearance import local_appearance
from .local_global_similarity import local_global_similarity
from .mutual_information_loss import folded_loss, folded_loss_gradient, mutual_information_loss
from .neighbourhood_mean import neighbourhood_mean
from .refined_labels import refined_labels
from .segment import segment
from .segment_and_count import segment_and_count

__all__ = [
    "accumulation_dtype",
    "appearance_statistics",
    "assign",
    "class_moments",
    "confusion_matrix",
    "fold_projection",
    "fold_projection_gradient",
    "folded_loss",
    "folded_loss_gradient",
    "information_of_moments",
    "linear_sum_assignment",
    "local_appearance",
    "local_global_similarity",
    "moments_of",
    "mutual_information_loss",
    "neighbourhood_mean",
    "refined_labels",
    "segment",
    "segment_and_count",
]
