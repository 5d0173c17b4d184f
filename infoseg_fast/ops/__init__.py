"""The public ops: arguments are checked and the projection folded here, once, for every backend."""

from .mutual_information_loss import mutual_information_loss
from .segmentation import segment, segment_and_count
from .similarity import assign, class_moments, local_global_similarity

__all__ = [
    "assign",
    "class_moments",
    "local_global_similarity",
    "mutual_information_loss",
    "segment",
    "segment_and_count",
]
