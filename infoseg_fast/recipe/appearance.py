"""The appearance term: the information of the class of a position about the appearance of its
pixels.

I(k; y) is the mutual information of the class k of a position and its appearance y. The appearance
comes from the image and is not learnt, so that classes must be visible. With h the differential
entropy, I(k; y) = h(y) - sum_k pi_k h(y | k). Among all densities of one covariance the normal
density has the largest entropy. So the normal entropies of the classes bound I from below, up to
h(y), which does not depend on the assignment.

The bound depends on the assignment V only through its moments sum_p V[k,p] (1, y, y y^T)[p].
`appearance_statistics` gives the factors of V and `information_of_moments` the bound.
`appearance_term`, for training, forms the moments by `class_moments`, without V.
`appearance_information` takes V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.objective import appearance_over_ranks
from ..distributed.world import ranks
from ..model import padded
from ..ops.appearance_statistics import appearance_statistics
from ..ops.class_moments import class_moments
from ..ops.information_of_moments import RESOLUTION, information_of_moments
from ..ops.joined_appearance import joined_appearance_term
from ..reference import accumulation_dtype, moments_of
from .description import colours_and_position, description, with_position_noise


@dataclass(frozen=True)
class AppearanceTerm:
    """The weighted appearance term of a loss.

    Attributes:
        weight: factor of the information.
        temperature: tau of the assignment.
        smooth: radius over which the assignment is averaged, positions, as in the labelling.
        position: whether the last channel of the images is the position of the pixels. It is part
            of the appearance then.
    """

    weight: float
    temperature: float = 1.0
    smooth: int = 0
    position: bool = False

    def __call__(
        self,
        features: Tensor,
        global_features: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        images: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """The weighted information. Arguments as in `appearance_term`, but the images need no
        padding and may have any number of channels (`colour_channels`).
        """
        term = appearance_over_ranks if ranks() > 1 else appearance_term
        colours, position = colours_and_position(padded(images), self.position)
        return self.weight * term(
            features,
            global_features,
            weight,
            bias,
            images=colours,
            position=position,
            mask=mask,
            temperature=self.temperature,
            smooth=self.smooth,
        )


def appearance_term(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    images: Tensor,
    position: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    smooth: int = 0,
    backend: str = "auto",
) -> Tensor:
    """`appearance_information` of the smoothed assignment and `local_appearance`. The assignment is
    not formed.

    Args:
        features, global_features, weight, bias, temperature: as in `assign`.
        images: float [B, c, H_img, W_img] in [0, 1], which the features cover.
        position: float [B, 1, H_img, W_img], which is part of the appearance, with noise
            (`with_position_noise`). None: it is not.
        mask, smooth: as in `appearance_statistics`.
        backend: "auto", "reference", "cpp" or "triton", of each op.

    Returns:
        A scalar, float64 for float64 features, else float32. Differentiable in all tensors but the
        images and the position.
    """
    if position is None:
        joined = joined_appearance_term(
            features, global_features, weight, bias, images, mask, smooth, temperature, backend
        )
        if joined is not None:
            return joined
    appearance = description(images, position, features.shape[2:], backend)
    statistics = appearance_statistics(appearance.to(accumulation_dtype(features.dtype)), mask, smooth, backend=backend)
    moments = class_moments(
        features, global_features, weight, bias, statistics=statistics, temperature=temperature, backend=backend
    )
    total = statistics.sum(dim=(0, 2, 3))
    if position is not None:
        moments, total = with_position_noise(moments, 1), with_position_noise(total, 0)
    return information_of_moments(moments, total, backend=backend)


def appearance_information(
    probs: Tensor, appearance: Tensor, mask: Tensor | None = None, *, resolution: float = RESOLUTION
) -> Tensor:
    """The mutual information of class and appearance in nats, with the appearance of each class as
    normal distribution.

        I = 1/2 log det(S + r^2) - sum_k pi_k 1/2 log det(S_k + r^2)

    S is the covariance of y over all positions. pi_k and S_k are the share and the covariance of
    class k, with the weight V[b,k,p] of position p. Each channel of y is scaled to variance 1. The
    result is never negative, and 0 if all classes look alike.

    Args:
        probs: V [B, K, h, w], from `assign`.
        appearance: y [B, d, h, w], from `local_appearance` or any other description of the
            positions; a constant.
        mask: bool [B, h, w], the positions that count. None: all.
        resolution: r > 0, in standard deviations. Smaller differences do not count.

    Returns:
        A scalar, float64 for float64 probabilities, else float32. NaN if no position counts.
        Differentiable in `probs`.

    Raises:
        ValueError: the shapes do not match, or resolution is not above 0.
    """
    if (
        probs.dim() != 4
        or appearance.dim() != 4
        or probs.shape[0::2] != appearance.shape[0::2]
        or (probs.shape[3] != appearance.shape[3])
    ):
        raise ValueError(
            "probs [B, K, h, w] and appearance [B, d, h, w] must share B, h and w, "
            f"not {list(probs.shape)} and {list(appearance.shape)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != probs.shape[:1] + probs.shape[2:]):
        raise ValueError(f"mask must be bool [B, h, w] as probs are, not {mask.dtype} {list(mask.shape)}")
    if not 0 < resolution < float("inf"):
        raise ValueError(f"resolution must be above 0, not {resolution!r}")
    dtype = accumulation_dtype(probs.dtype)
    statistics = appearance_statistics(appearance.to(dtype), mask)
    return information_of_moments(moments_of(probs.to(dtype), statistics), statistics.sum(dim=(0, 2, 3)), resolution)
