"""Invariant information clustering for segmentation (Ji, Henriques and Vedaldi, 2019, arXiv
1807.06653).

The loss maximises the information between the classes of two views of an image, at positions up to
T apart:

    loss = -1 / (2T + 1)^2 sum_t sum_kl P_t[k,l] (log P_t[k,l] - lambda log P_t[k] - lambda log P_t[l])

with P_t[k,l] = sum_p V[k,p] V'[l,p + t], symmetrised and normalised, for all displacements t of at
most T positions each way. V and V' are the assignments of the two views. With lambda = 1 the sum is
the mutual information. A larger lambda favours classes of equal size. A second head with more
classes is trained in the same way, and is not used for labels.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..augment import colour_draws, jittered
from ..data.crops import Part
from ..distributed.sums import summed
from ..draws import generator_on
from ..model import InfoSegNet, padded, position_mask
from . import DataInfo, Recipe, imported
from .labelling import Labelling
from .network import new_network
from .overclustering import network_classes

if TYPE_CHECKING:
    from ..config import Settings
    from .sample import Sample

JITTER = 0.4  # largest relative change of the colours of the second view
EPSILON = 1e-12


class IICRecipe(Recipe):
    """A network with two heads, 1x1 convolutions of its local features: K classes and over-clusters.

    The second view has other colours, and half of its images are mirrored.
    """

    defaults: ClassVar[dict[str, Any]] = {"overcluster": 3.0}
    compares_images = False

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__(settings, data)
        network, builder, arguments = new_network(settings, data, data.num_classes, dim=data.num_classes)
        if getattr(network.backbone, "frozen", None) is not None:
            network.backbone.frozen.cache = None  # the second view is new in each step
        self.network = with_fixed_classes(network)
        self.arguments = {"builder": builder, "arguments": arguments}
        number = network_classes(data.num_classes, settings.overcluster)
        channels = network.local_projection.in_channels
        self.over_head = nn.Conv2d(channels, number, 1) if number > data.num_classes else None

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        mask = position_mask(mask, images)
        images = padded(images)
        other, mirrored = self.second_view(step, images)
        both = torch.cat([images, other]).contiguous(memory_format=torch.channels_last)
        features, _ = self.network(both)
        total = images.new_zeros(())
        for head in (self.network.local_projection, self.over_head):
            if head is not None:
                probs, other_probs = (self.settings.temperature * head(features)).float().softmax(dim=1).chunk(2)
                other_probs = torch.where(mirrored, other_probs.flip(3), other_probs)
                total = total + iic_loss(
                    probs, other_probs, mask, self.settings.displacement, self.settings.marginal_weight
                )
        return total

    def second_view(self, step: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """The second view of images [B, c, H, W], and the images that it mirrors, bool [B, 1, 1, 1].
        The random numbers follow from the places of the images in the whole batch of the step.
        """
        part, device = self.part or Part(0, len(images), len(images)), images.device
        generator = generator_on(device, self.settings.seed + 1, step)
        mirrored = torch.randint(0, 2, (part.total, 1, 1, 1), generator=generator, device=device).bool()[part.inside]
        other = jittered(images, colour_draws(JITTER, generator, part, device), self.data.position)
        return torch.where(mirrored, other.flip(3), other), mirrored

    def labelling(self, sample: Sample) -> Labelling:
        network = copy.deepcopy(self.network).requires_grad_(False).eval()
        builder = f"{__name__}:{classifier.__name__}"
        return Labelling(network, self.arguments, self.data, builder, temperature=self.settings.temperature)


class FixedClasses(nn.Module):
    """Global features that are the unit vectors, so that similarities equal the local features."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("unit_vectors", torch.eye(num_classes).flatten(), persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        number = pooled.shape[0]  # not len(), which would be a constant in a recorded graph
        return self.unit_vectors.to(pooled.dtype).expand(number, -1)


def with_fixed_classes(network: InfoSegNet) -> InfoSegNet:
    """The network with fixed global features: its projected local features are logits of classes."""
    network.global_projection = FixedClasses(network.num_classes)
    return network


def classifier(builder: str, arguments: dict[str, Any]) -> InfoSegNet:
    """Build the network of a checkpoint."""
    return with_fixed_classes(imported(builder, "the builder of the checkpoint's network")(**arguments))


def iic_loss(probs: Tensor, others: Tensor, mask: Tensor | None, displacement: int, marginal_weight: float) -> Tensor:
    """The loss of one head, over the images of all ranks.

    Args:
        probs, others: V and V' [B, K, h, w] at the same positions.
        mask: bool [B, h, w], the positions that count in both views. None: all.
        displacement: T, positions.
        marginal_weight: lambda.

    Returns:
        A scalar. Differentiable once in both assignments.
    """
    if mask is not None:
        probs, others = probs * mask[:, None], others * mask[:, None]
    joint = summed(displaced_joint(probs, others, displacement).double())
    joint = (joint + joint.mT) / 2
    joint = (joint / joint.sum(dim=(1, 2), keepdim=True).clamp_min(EPSILON)).clamp_min(EPSILON)
    share = joint.sum(dim=2)
    entropy = torch.special.entr(joint).sum(dim=(1, 2))
    marginal = torch.special.entr(share).sum(dim=1)
    return (entropy - 2 * marginal_weight * marginal).mean().to(probs.dtype)


def displaced_joint(probs: Tensor, others: Tensor, displacement: int) -> Tensor:
    """sum_p V[k,p] V'[l,p + t] for every displacement t: [(2T + 1)^2, K, K].

    Both maps are framed with zeros and flattened to rows [K, n]. A displacement is then an offset in
    the rows, so that each joint is a product of two views of them.
    """
    framed = (
        nn.functional.pad(x, (displacement, displacement) * 2).movedim(1, 0).contiguous() for x in (probs, others)
    )
    first, second = framed
    columns = first.shape[3]
    steps = range(-displacement, displacement + 1)
    offsets = [dy * columns + dx for dy in steps for dx in steps]
    return OffsetProducts.apply(first.flatten(1), second.flatten(1), offsets)


class OffsetProducts(torch.autograd.Function):
    """first[:, p] second[:, p + offset]^T, summed over p, for each offset: [offsets, K, K].

    The gradients accumulate in views of two maps. Autograd would fill and add a whole map for each
    offset.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, offsets: list[int]) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.offsets = offsets
        with torch.autocast("cuda" if first.is_cuda else "cpu", enabled=False):  # sums over all positions, in float32
            return torch.stack([a @ b.T for a, b in (shifted(first, second, offset) for offset in offsets)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        first, second = ctx.saved_tensors
        grads = torch.zeros_like(first), torch.zeros_like(second)
        for g, offset in zip(grad, ctx.offsets, strict=True):
            a, b = shifted(first, second, offset)
            grad_a, grad_b = shifted(*grads, offset)
            grad_a.addmm_(g, b)
            grad_b.addmm_(g.T, a)
        return *grads, None


def shifted(first: Tensor, second: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Views [K, n - |offset|]: column p of the first beside column p + offset of the second."""
    n = first.shape[1] - abs(offset)
    return first.narrow(1, max(-offset, 0), n), second.narrow(1, max(offset, 0), n)
