"""The confusion matrix of label maps and ground truth."""

from torch import Tensor

from .confusion_matrix import confusion_matrix
from .segment import segment


def segment_and_count(
    features: Tensor,
    global_features: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_classes: int,
    temperature: float = 1.0,
    interpolate: str = "probs",
    ignore_index: int | None = 255,
) -> Tensor:
    """The confusion matrix int64 [K, num_classes] of label maps at the size of the target, and the
    target.
    """
    labels = segment(
        features, global_features, weight, bias, temperature=temperature, size=target.shape[1:], interpolate=interpolate
    )
    return confusion_matrix(labels, target, global_features.shape[1], num_classes, ignore_index)
