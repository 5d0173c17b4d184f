"""The appearance term: the information of the class of a position about what its pixels look like.

I(k; y) is the mutual information of the class k of a position and its appearance y, which is taken
from the image and not learnt. No class can be invented for it that cannot be seen. With h the
differential entropy, I(k; y) = h(y) - sum_k pi_k h(y | k). Among all densities of one covariance
the normal density has the largest entropy. So the normal entropies of the classes bound I from
below, up to h(y), which no assignment changes.

The bound depends on the assignment V through its moments sum_p V[k,p] (1, y, y y^T)[p] alone.
`appearance_statistics` gives the factors of V and `information_of_moments` the bound.
`class_moments` forms the moments without V, for the training loop (`appearance_term`).
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
from ..ops.local_appearance import local_appearance
from ..reference import accumulation_dtype, moments_of
from .colours import colour_channels


@dataclass(frozen=True)
class AppearanceTerm:
    """The weighted appearance term of a loss.

    Attributes:
        weight: factor of the information.
        temperature: tau of the assignment.
        smooth: radius in positions over which the assignment is averaged, as when labels are made.
    """

    weight: float
    temperature: float = 1.0
    smooth: int = 0

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
        """The weighted information. Arguments as of `appearance_term`; the images need no padding,
        and may have any number of channels (`colour_channels`).
        """
        term = appearance_over_ranks if ranks() > 1 else appearance_term
        return self.weight * term(
            features,
            global_features,
            weight,
            bias,
            images=colour_channels(padded(images)),
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
    mask: Tensor | None = None,
    temperature: float = 1.0,
    smooth: int = 0,
    resolution: float = RESOLUTION,
    backend: str = "auto",
) -> Tensor:
    """`appearance_information` of the smoothed assignment and of `local_appearance`, without
    forming an assignment.

    Args:
        features, global_features, weight, bias, temperature: as in `assign`.
        images: float [B, c, H_img, W_img] in [0, 1], which the features cover.
        mask, smooth: as in `appearance_statistics`.
        resolution: as in `appearance_information`.
        backend: "auto", "reference", "cpp" or "triton", of every part.

    Returns:
        A scalar, float64 for float64 features, else float32; differentiable in all but the images.
    """
    joined = joined_appearance_term(
        features, global_features, weight, bias, images, mask, smooth, temperature, resolution, backend
    )
    if joined is not None:
        return joined
    appearance = local_appearance(images, features.shape[2:], backend=backend)
    statistics = appearance_statistics(appearance.to(accumulation_dtype(features.dtype)), mask, smooth, backend=backend)
    moments = class_moments(
        features, global_features, weight, bias, statistics=statistics, temperature=temperature, backend=backend
    )
    return information_of_moments(moments, statistics.sum(dim=(0, 2, 3)), resolution, backend=backend)


def appearance_information(
    probs: Tensor, appearance: Tensor, mask: Tensor | None = None, *, resolution: float = RESOLUTION
) -> Tensor:
    """The mutual information of class and appearance, in nats, with every class taken as normal.

        I = 1/2 log det(S + r^2) - sum_k pi_k 1/2 log det(S_k + r^2)

    S is the covariance of y over all positions. pi_k and S_k are the share and the covariance of
    class k, where position p counts V[b,k,p] times. Each channel of y is scaled to variance 1.
    Never negative; 0 when all classes look alike.

    Args:
        probs: V [B, K, h, w], from `assign`.
        appearance: y [B, d, h, w], from `local_appearance` or any other description of the
            positions; a constant.
        mask: bool [B, h, w]; only positions where it holds count.
        resolution: r > 0, in standard deviations. Smaller differences do not count.

    Returns:
        A scalar, differentiable in `probs`; float64 for float64 probabilities, else float32. NaN
        when no position counts.

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
