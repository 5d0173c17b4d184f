"""Unsupervised semantic segmentation by mutual information maximisation, made fast.

Ops for any training loop, and a training loop of its own (`infoseg --help`).
"""

from pathlib import Path as _Path

# A checkout: kernels/ lies beside the package, not in it. An editable installation of another checkout
# would find its own.
if not (_Path(__file__).parent / "kernels" / "__init__.py").exists():
    __path__.append(str(_Path(__file__).resolve().parent.parent))

from .errors import BackendUnavailableError, DataError
from .model import InfoSegNet
from .ops import assign, class_moments, local_global_similarity, mutual_information_loss, segment, segment_and_count
from .ops.confusion_matrix import confusion_matrix
from .ops.dispatch import backends
from .ops.linear_sum_assignment import linear_sum_assignment
from .ops.local_appearance import local_appearance
from .recipe.appearance import appearance_information
from .recipe.loss import InfoSegLoss
from .scores.matching import match_clusters
from .scores.metrics import ClusterMetrics
from .segmenter import Segmenter, load
from .train import train

__version__ = "0.2.0"

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
    "train",
]
