"""The recipe for a frozen backbone: a mixture of t distributions of its features.

The leading principal components y of the local features, each of variance 1, have the density

    p(y) = sum_k pi_k t(y; m_k, S_k)

with t the multivariate t distribution (nu = 4 degrees of freedom). Distant points have less weight
than with normal distributions. Expectation maximisation (Peel and McLachlan, 2000) fits the mixture
to the sample, from spherical k-means. Training then fits it to all images, by the gradient of the
likelihood. Labels are the argmax of p(k | y), upsampled, with the refinement at the pixels.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import build
from ..distributed.objective import Valid
from ..distributed.sums import sizes_of_ranks
from ..errors import DataError
from ..model import STRIDE, InfoSegNet
from . import DataInfo, Recipe
from .averaging import average_of, update_average
from .iic import with_fixed_classes
from .labelling import Labelling
from .network import new_network
from .overclustering import OverClusters

if TYPE_CHECKING:
    from ..config import Settings
    from .sample import Sample

COMPONENTS = 64  # principal components of the features
FREEDOM = 4.0  # degrees of freedom nu of the t distributions
FLOOR = 1e-2  # added to the variances
STARTS, KMEANS_STEPS, EM_STEPS = 5, 20, 40


class MixtureHead(nn.Module):
    """p(k | y) of a mixture of t distributions: [B, d, h, w] -> [B, K, h, w]."""

    def __init__(self, num_classes: int, components: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(num_classes))  # logits of pi
        self.means = nn.Parameter(torch.zeros(num_classes, components))
        # Lower triangles R_k with S_k^-1 = R_k^T R_k; the diagonal is stored as its logarithm.
        self.roots = nn.Parameter(torch.zeros(num_classes, components, components))

    def forward(self, components: Tensor) -> Tensor:
        return self.joint(components.movedim(1, -1)).softmax(dim=-1).movedim(-1, 1)

    def joint(self, y: Tensor) -> Tensor:
        """log (pi_k t(y; m_k, S_k)) up to a constant: [..., d] -> [..., K]."""
        d = self.means.shape[1]
        distance = self.distance(y)
        log_det = self.roots.diagonal(dim1=1, dim2=2).sum(dim=1)
        return self.shares.log_softmax(dim=0) + log_det - (FREEDOM + d) / 2 * torch.log1p(distance / FREEDOM)

    def distance(self, y: Tensor) -> Tensor:
        """Squared Mahalanobis distances: [..., d] -> [..., K]."""
        roots = self.roots.tril(-1) + torch.diag_embed(self.roots.diagonal(dim1=1, dim2=2).exp())
        offset = torch.einsum("kij,kj->ki", roots, self.means)
        return (torch.einsum("kij,...j->...ki", roots, y) - offset).square().sum(dim=-1)

    @torch.no_grad()
    def fit(self, y: Tensor, seed: int) -> None:
        """Fit the mixture by expectation maximisation, from the best of STARTS spherical k-means.

        Args:
            y: the points [n, d].
            seed: seed of the starts.
        """
        K, d = self.means.shape
        weights = F.one_hot(spherical_kmeans(y, K, seed), K).to(y)
        scales = torch.ones_like(weights)
        for _ in range(EM_STEPS):
            mass, scaled = weights.sum(dim=0) + FLOOR, weights * scales
            self.shares.copy_((mass / mass.sum()).log())
            self.means.copy_(scaled.T @ y / (scaled.sum(dim=0)[:, None] + FLOOR))
            for k in range(K):
                centred = y - self.means[k]
                covariance = (centred * scaled[:, k : k + 1]).T @ centred / mass[k] + FLOOR * torch.eye(d).to(y)
                root = torch.linalg.inv(torch.linalg.cholesky(covariance)).tril()
                self.roots[k] = root.tril(-1) + torch.diag(root.diagonal().log())
            weights = self.joint(y).softmax(dim=1)
            scales = (FREEDOM + d) / (FREEDOM + self.distance(y))


def spherical_kmeans(y: Tensor, number: int, seed: int) -> Tensor:
    """Spherical k-means: the cluster of each point, int64 [n], by the best of STARTS."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(y, dim=1)
    best, found = -torch.inf, None
    for _ in range(STARTS):
        centres = directions[torch.randperm(len(y), generator=generator)[:number].to(y.device)]
        for _ in range(KMEANS_STEPS):
            one_hot = F.one_hot((directions @ centres.T).argmax(dim=1), number).to(y)
            centres = F.normalize(one_hot.T @ directions, dim=1)
        similarity, nearest = (directions @ centres.T).max(dim=1)
        if found is None or similarity.sum() > best:
            best, found = similarity.sum(), nearest
    return found


class FeaturesRecipe(Recipe):
    """A mixture of t distributions of the features of a frozen backbone."""

    defaults: ClassVar[dict[str, Any]] = {
        "batch_size": 32, "lr": 1e-3, "average": 0.98, "refine": True, "smooth": 0,
    }  # fmt: skip
    compares_images = False

    def __init__(self, settings: Settings, data: DataInfo) -> None:
        super().__init__(settings, data)
        if settings.backbone is None or not settings.freeze_backbone:
            raise DataError("--recipe features needs --backbone and --freeze-backbone")
        if settings.global_index is not None:
            raise DataError("--global-index has no effect in --recipe features, which has no global features")
        K = data.num_classes
        self.network: Any
        self.network, _, self.arguments = new_network(settings, data, K, dim=K, components=COMPONENTS)
        with_head(self.network)
        self.average = average_of(self.network.backbone.head) if settings.average else None

    def begin(self, sample: Sample) -> None:
        backbone = self.network.backbone
        parts = []
        for images, mask in sample.batches:
            local, _ = backbone.native(self.network.normalize(images), project=False)
            parts.append(local.movedim(1, -1)[whole_cells(images, mask, local, backbone.local_stride)])
        points = torch.cat(parts)
        if len(points) <= backbone.components:
            raise DataError(
                f"--data {self.settings.data} has {len(points)} cells of {backbone.local_stride} px with data in the "
                f"sample of crops, and {backbone.components} components need more; a larger --crop has more"
            )
        if not points.isfinite().all():
            raise DataError(f"--backbone {self.settings.backbone}: the features of the images are not finite")
        backbone.set_components(points)
        backbone.head.fit(points @ backbone.axes.T + backbone.offset, self.settings.seed)
        if self.settings.average:
            self.average = average_of(backbone.head)

    def loss(self, step: int, images: Tensor, mask: Tensor | None) -> Tensor:
        backbone = self.network.backbone
        local, _ = backbone.native(self.network.normalize(images))
        valid = Valid.of(whole_cells(images, mask, local, backbone.local_stride), local)
        loss = -backbone.head.joint(local.movedim(1, -1)[valid.mask]).logsumexp(dim=1).mean()
        share = valid.counts * valid.share * (sum(sizes_of_ranks(len(images))) / len(images))
        return loss * share.to(loss.dtype)

    def after_step(self, step: int) -> None:
        if self.average is not None:
            update_average(self.average, self.network.backbone.head, self.settings.average, step)

    @torch.no_grad()
    def labelling(self, sample: Sample) -> Labelling:
        network = copy.deepcopy(self.network)
        if self.average is not None:
            network.backbone.head.load_state_dict(self.average.state_dict())
        network.requires_grad_(False).eval()
        found = Labelling(network, self.arguments, self.data, f"{__name__}:{build_network.__name__}")
        if not self.settings.refine:
            return found
        probs = [found.probabilities(images) for images, _ in sample.batches]
        refinement = OverClusters.of(probs, sample, 0, refine=True).refinement(None, 0)
        return dataclasses.replace(found, refinement=refinement)


def whole_cells(images: Tensor, mask: Tensor | None, local: Tensor, stride: int) -> Tensor:
    """The cells of a local map that lie within the images and whose pixels all count, bool [B, h,
    w].

    Args:
        images: [B, c, H, W], without the padding of the map.
        mask: the pixels that count, bool [B, H, W], or the positions, bool [B, H / 4, W / 4]. None:
            all.
        local: the local map [B, C, h, w].
        stride: stride of the map, pixels.
    """
    rows, columns = images.shape[2:]
    if mask is None:
        mask = torch.ones_like(images[:, 0], dtype=torch.bool)
    elif mask.shape[1:] != images.shape[2:]:
        mask = mask.repeat_interleave(STRIDE, dim=1).repeat_interleave(STRIDE, dim=2)
    below, right_of = local.shape[2] * stride - rows, local.shape[3] * stride - columns
    return F.max_pool2d(F.pad((~mask).float(), (0, right_of, 0, below), value=1.0), stride) == 0


def with_head(network: InfoSegNet) -> InfoSegNet:
    """The network with a `MixtureHead`: its projected local features are log p(k | y)."""
    K = network.num_classes
    network.backbone.head = MixtureHead(K, network.backbone.components)
    network.local_projection = nn.Conv2d(K, K, 1, bias=False).requires_grad_(False)
    with torch.no_grad():
        network.local_projection.weight.copy_(torch.eye(K)[:, :, None, None])
    return with_fixed_classes(network)


def build_network(**arguments: Any) -> InfoSegNet:
    """Build the network of a checkpoint."""
    return with_head(build(**arguments))
