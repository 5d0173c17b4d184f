"""The appearance term in one call of a Triton kernel, where tensors are read directly."""

import torch
from torch import Tensor

from ..reference import accumulation_dtype
from . import checks, direct, dispatch
from .information_of_moments import RESOLUTION


def joined_appearance_term(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    images: Tensor,
    mask: Tensor | None,
    smooth: int,
    temperature: float,
    backend: str,
) -> Tensor | None:
    """`recipe.appearance.appearance_term` without a position, or None where its ops must be called
    one by one: with another backend, in float64, while something records or wraps tensors, for
    images whose cells are not whole pixels, and for arguments that do not match, which the ops name.
    """
    tensors = features, global_features, weight, bias, images, mask
    if weight is None or not dispatch.direct(*tensors) or not _match(features, images, mask):
        return None
    if dispatch.select("class_moments", backend, features) != "triton":
        return None
    features, global_features, weight, bias = checks.local_and_global(features, global_features, weight, bias)
    temperature = checks.real("temperature", temperature, positive=True)
    tensors = features, global_features, weight, bias, images, mask
    if accumulation_dtype(features.dtype) != images.dtype or any(x is not None and x.is_neg() for x in tensors):
        return None
    from ..kernels.appearance_term import KERNEL

    return direct.projected("appearance_term", KERNEL, tensors, (smooth, temperature, RESOLUTION))


def _match(features: Tensor, images: Tensor, mask: Tensor | None) -> bool:
    """Whether the images cover the positions in whole pixels, and the mask is one of them."""
    if features.dim() != 4 or images.dim() != 4 or not images.numel() or not features.numel():
        return False
    B, _, h, w = features.shape
    rows, columns = images.shape[2:]
    if images.shape[0] != B or rows % h or columns % w or images.device != features.device:
        return False
    if mask is None:
        return True
    return (
        mask.dtype == torch.bool and mask.shape == (B, h, w) and mask.is_contiguous() and mask.device == images.device
    )
