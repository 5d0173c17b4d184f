"""Label maps at the resolution of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .assign import folded_probs
from .folding import fold_projection, folded_similarity
from .tracing import parts, recorded


def segment(
    features: Tensor,
    global_features: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    size: tuple[int, int] | None = None,
    interpolate: str = "probs",
) -> Tensor:
    """argmax_k of V ("probs") or z ("logits"), upsampled bilinearly (align_corners=False): [B,
    *size] uint8.
    """
    G, g0 = fold_projection(global_features, weight, bias)

    def labels_of(images: slice) -> Tensor:
        folded = features[images], G[images], None if g0 is None else g0[images]
        volume = folded_probs(*folded, temperature) if interpolate == "probs" else folded_similarity(*folded)
        # A recorded graph cannot compare sizes. Interpolation to the same size changes nothing.
        if size is not None and (recorded() or volume.shape[2:] != tuple(size)):
            volume = F.interpolate(volume, size=tuple(size), mode="bilinear", align_corners=False)
        return volume.argmax(dim=1).to(torch.uint8)

    return torch.cat([labels_of(images) for images in parts(features)])
