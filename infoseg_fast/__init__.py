"""Unsupervised semantic segmentation by mutual information maximisation, made fast.

Ops to drop into one's own training, and a lean training loop around them (`infoseg --help`).
"""

from .appearance import appearance_information, local_appearance
from .assignment import linear_sum_assignment
from .confusion import confusion_matrix
from .dispatch import backends
from .errors import BackendUnavailableError, DataError
from .loss import InfoSegLoss
from .matching import match_clusters
from .metrics import ClusterMetrics
from .model import InfoSegNet
from .ops import assign, class_moments, local_global_similarity, mutual_information_loss, segment, segment_and_count
from .segmenter import Segmenter, load

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "ClusterMetrics",
    "DataError",
    "InfoSegLoss",
    "InfoSegNet",
    "Segmenter",
    "appearance_information",
    "assign",
    "backends",
    "class_moments",
    "confusion_matrix",
    "linear_sum_assignment",
    "load",
    "local_appearance",
    "local_global_similarity",
    "match_clusters",
    "mutual_information_loss",
    "segment",
    "segment_and_count",
]
