"""What the pixels around a position look like, and how much of it an assignment tells.

The third mutual information of the default recipe, beside those of local and global features: I(k; y) of the class k
of a position and its appearance y, which is taken from the image and not learnt. No class can be invented for it that
cannot be seen. With h the differential entropy, I(k; y) = h(y) - sum_k pi_k h(y | k); among all densities of one
covariance the normal one has the largest entropy, so the normal entropies of the classes bound I from below, up to
h(y), which no assignment changes.

The bound needs no more of an assignment V than its moments sum_p V[k,p] (1, y, y y^T)[p]: `appearance_statistics` gives
what V is multiplied by, `information_of_moments` the bound. `infoseg_fast.class_moments` forms the moments without V,
which is how the training loop has them (`appearance_term`), and `appearance_information` from V.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import reference
from ..ops import class_moments, eager
from ..ops.dispatch import choose
from ..ops.dispatch import kernel as dispatch_kernel
from ..reference.similarity import accumulation_dtype, moments_of

RESOLUTION = 0.1  # r, in standard deviations: what differs by less counts as the same


def local_appearance(images: Tensor, size: tuple[int, int], *, backend: str = "auto") -> Tensor:
    """The colour and the texture at every position of a map of `size` that covers the images.

    Args:
        images: float [B, c, H_img, W_img] in [0, 1].
        size: (h, w); a position stands for a cell of H_img / h x W_img / w pixels.
        backend: "auto", "reference", "cpp" or "triton"; the last two take cells of whole pixels.

    Returns:
        y, [B, c + 2, h, w] float32, a constant: the logarithm of each channel's mean over the cell, in which a change
        of illumination is a shift; and of the structure tensor of the logarithmic brightness over 3 x 3 cells (the mean
        of the products of its gradient's components) the roughness, which is the logarithm of its trace, and the
        coherence, the difference of its eigenvalues by their sum: 0 for grain, 1 for stripes.
    """
    images = images.detach().float()
    whole = size[0] > 0 and size[1] > 0 and images.shape[2] % size[0] == 0 and images.shape[3] % size[1] == 0
    if not whole and backend == "auto":
        backend = "reference"
    if not whole and backend != "reference":
        raise ValueError(
            f"backend {backend!r} takes cells of whole pixels, not {list(size)} of images {list(images.shape)}"
        )
    kernel = _kernel("local_appearance", backend, images)
    return kernel(images, size) if kernel else reference.local_appearance(images, size)


def appearance_statistics(
    appearance: Tensor, mask: Tensor | None = None, smooth: int = 0, *, backend: str = "auto"
) -> Tensor:
    """What the moments of the classes are sums of: the products of (1, y), y scaled to mean 0 and variance 1.

    Args:
        appearance: y [B, d, h, w]; a constant.
        mask: bool [B, h, w]; only positions where it holds count.
        smooth: radius of the `neighbourhood_mean` that the probabilities would go through. What is averaged here in
            their place is the statistics, by the adjoint of that mean: the sums over all positions are the same.
        backend: "auto", "reference", "cpp", which takes float32, or "triton", which takes float64 too.

    Returns:
        (1, y_1 .. y_d, y_1 y_1, y_1 y_2 .. y_d y_d), each times the position's share of the positions that count,
        [B, (d + 1) (d + 2) / 2, h, w], in the dtype of y.
    """
    y = appearance.detach()
    kernel = _kernel("appearance_statistics", backend, y, mask)
    return kernel(y, mask, smooth) if kernel else reference.appearance_statistics(y, mask, smooth)


def _kernel(op: str, backend: str, x: Tensor, *others: Tensor | None):
    """The kernel of `op` for x; None for the reference, which also takes what has no elements or is being compiled."""
    if x.numel() == 0 or not eager.takes(x, *others):
        return None
    chosen = choose(op, backend, x.device.type, x.dtype)
    return None if chosen == "reference" else dispatch_kernel(op, chosen).forward


def information_of_moments(
    moments: Tensor, total: Tensor, resolution: float = RESOLUTION, *, backend: str = "auto"
) -> Tensor:
    """The mutual information of class and appearance, as `appearance_information`, from the moments of the classes.

    Args:
        moments: [K, S], sums over all positions of the probabilities times `appearance_statistics`.
        total: [S], sums of the statistics alone; a constant.
        resolution: r.
        backend: "auto", "reference", "cpp" or "triton".

    Returns:
        A scalar in the dtype of the moments, once differentiable in them.
    """
    return _InformationOfMoments.apply(moments, total, resolution, backend)


class _InformationOfMoments(torch.autograd.Function):
    """Forms the gradient with the value, from the same inverses."""

    @staticmethod
    def forward(ctx, moments, total, resolution, backend):
        forward = _kernel("information_of_moments", backend, moments, total) or reference.information_of_moments
        value, gradient = forward(moments, total, resolution, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


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
    """What the default recipe maximises: `appearance_information` of the assignment, averaged over `smooth` positions
    each way, and `local_appearance`, without forming either assignment.

    Args:
        features, global_features, weight, bias, temperature: as in `assign`.
        images: float [B, c, H_img, W_img] in [0, 1], which the features cover.
        mask, smooth: as in `appearance_statistics`.
        resolution: as in `appearance_information`.
        backend: "auto", "reference", "cpp" or "triton", of every part.

    Returns:
        A scalar, float64 for float64 features, else float32; once differentiable in all but the images.
    """
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

    with S the covariance of y over all positions, pi_k and S_k the share and the covariance of class k when position p
    counts V[b,k,p] times, and each channel of y scaled to variance 1. Never negative; 0 when every class looks alike.

    Args:
        probs: V [B, K, h, w], from `assign`.
        appearance: y [B, d, h, w], from `local_appearance` or any other description of the positions; a constant.
        mask: bool [B, h, w]; only positions where it holds count.
        resolution: r; what differs by less, in standard deviations, counts as the same.

    Returns:
        A scalar, once differentiable in `probs`; float64 for float64 probabilities, else float32. NaN when no position
        counts.

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
