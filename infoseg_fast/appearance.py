"""What the pixels around a position look like, and how much of it an assignment tells.

The third mutual information of the default recipe, beside those of local and global features: I(k; y) of the class k
of a position and its appearance y, which is taken from the image and not learnt. No class can be invented for it that
cannot be seen. With h the differential entropy, I(k; y) = h(y) - sum_k pi_k h(y | k); among all densities of one
covariance the normal one has the largest entropy, so the normal entropies of the classes bound I from below, up to
h(y), which no assignment changes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DARK = 0.05  # added to intensities in [0, 1] before the logarithm: differences in the dark are mostly noise
FLAT = 1e-3  # added to the energy of the gradient, whose squares are of the same scale


def local_appearance(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The colour and the roughness at every position of a map of `size` that covers the images.

    Args:
        images: float [B, c, H_img, W_img] in [0, 1].
        size: (h, w); a position stands for a cell of H_img / h x W_img / w pixels.

    Returns:
        y, [B, c + 1, h, w] float32: the logarithm of each channel's mean over the cell, in which a change of
        illumination is a shift; and the logarithm of the mean squared gradient of the logarithmic brightness over
        3 x 3 cells.
    """
    images = images.float()
    colour = (F.adaptive_avg_pool2d(images, size) + DARK).log()
    brightness = (images + DARK).log().mean(dim=1, keepdim=True)
    across, down = brightness.diff(dim=3).square(), brightness.diff(dim=2).square()
    energy = F.adaptive_avg_pool2d(F.pad(across, (0, 1, 0, 0)) + F.pad(down, (0, 0, 0, 1)), size)
    return torch.cat([colour, (neighbourhood_mean(energy, 1) + FLAT).log()], dim=1)


def neighbourhood_mean(maps: Tensor, radius: int) -> Tensor:
    """Means over 2 radius + 1 positions each way of [B, K, h, w]; beyond the border the last ones are repeated."""
    if radius == 0:
        return maps
    return F.avg_pool2d(F.pad(maps, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


def appearance_information(
    probs: Tensor, appearance: Tensor, mask: Tensor | None = None, *, resolution: float = 0.1
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
        A scalar, differentiable in `probs`; float64 for float64 probabilities, else float32. NaN when no position
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
    dtype = torch.float64 if probs.dtype == torch.float64 else torch.float32
    V, y = (x.to(dtype).transpose(0, 1).flatten(1) for x in (probs, appearance.detach()))  # [K, N], [d, N]
    valid = torch.ones_like(y[0]) if mask is None else mask.flatten().to(dtype)
    share = valid / valid.sum()  # NaN when no position counts
    y = y - (y * share).sum(dim=1, keepdim=True)
    y = y / (y.square() * share).sum(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(dtype).tiny)

    d = len(y)
    moments = torch.cat([torch.ones_like(y[:1]), y, (y[:, None] * y).flatten(0, 1)]) * share  # [1 + d + d d, N]
    sums = V @ moments.T  # one product: shares, first and second moments of every class
    pi = sums[:, 0]
    mean, second = (x / pi.clamp_min(torch.finfo(dtype).tiny)[:, None] for x in sums[:, 1:].split([d, d * d], dim=1))
    covariance = second.view(-1, d, d) - mean[:, :, None] * mean[:, None]
    total = moments[1 + d :].sum(dim=1).view(d, d)
    return _half_log_det(total, resolution) - (pi * _half_log_det(covariance, resolution)).sum()


def _half_log_det(covariance: Tensor, resolution: float) -> Tensor:
    """1/2 log det(S + r^2) of [..., d, d]; in float64, since a tight class is nearly singular."""
    d = covariance.shape[-1]
    floor = resolution**2 * torch.eye(d, dtype=torch.float64, device=covariance.device)
    return torch.linalg.slogdet(covariance.double() + floor)[1].to(covariance.dtype) / 2
