"""Networks on a backbone that the user chooses: any module that returns a list of maps.

`Backbone` resamples these maps to the stride of the positions, so that the ops, the appearance
term, the refinement and the tiles work as with the package's own encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone_modules import hash_of, module_of, normalization
from .errors import DataError
from .feature_cache import FeatureCache
from .model import STRIDE, InfoSegNet, padded
from .reference.tracing import recorded

BUILDER = "infoseg_fast.backbones:build"
PROBE_SIDE = 224  # pixels: a multiple of all usual strides, also of 14
EPSILON = 1e-12  # least variance of a component
MIN_PROBABILITY = 1e-6
MAX_RECEPTIVE_RADIUS = 512  # pixels; images of a backbone that sees more are not cut into tiles
UNKNOWN_RADIUS = MAX_RECEPTIVE_RADIUS + 1  # pixels, of a backbone that needs the whole image
MAX_DIFFERENCE = 1e-3  # of the maps of a part of an image, by another order of sums; a share of the largest value
LEAST_SIDE = 64  # pixels, least short side of the other images that a module is probed with


class Frozen:
    """A network that is not trained, averaged or saved. Copies share it, with its cache."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.requires_grad_(False).eval()
        self.sha256 = hash_of(net.state_dict())
        self.cache: FeatureCache | None = None

    def __deepcopy__(self, memo: dict) -> Frozen:
        return self


class Radius:
    """The measured receptive radius of a network in pixels, or None. Copies of the network share
    it.
    """

    def __init__(self) -> None:
        self.pixels: int | None = None

    def __deepcopy__(self, memo: dict) -> Radius:
        return self


class Backbone(nn.Module):
    """Normalised images [B, c, H, W] -> local map [B, C, H / 4, W / 4] and global map.

    H and W are multiples of 4, as `InfoSegNet.normalize` gives them. They are padded to a multiple
    of the strides, by repeating the last row and column. The local maps are resampled to stride 4
    (bilinear, or by means if their stride is smaller) and concatenated.

    Args:
        net: maps [B, c, H, W] to a list of maps [B, channels, h, w].
        local_index: indices of the local maps.
        global_index: index of the map whose mean over positions gives the global features.
        channels: c.
        frozen: whether `net` is not trained. A checkpoint then has the hash of its weights instead
            of the weights.
        source: name of `net` in errors.
        components: number of principal components that replace the local map, at most its channels
            (`set_components`). The global map is then the local one. 0: the maps are not changed.

    Raises:
        DataError: the module does not return such maps, or an index is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        local_index: Sequence[int],
        global_index: int,
        channels: int,
        frozen: bool,
        source: str,
        components: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels, self.source = channels, source
        self.map_channels, self.strides = probed(net, channels)
        number = len(self.strides)
        for name, index in (*(("--local-index", i) for i in local_index), ("--global-index", global_index)):
            if not -number <= index < number:
                raise DataError(f"{name} must be from 0 to {number - 1}, or from -{number} to -1, not {index}")
        self.local_index, self.global_index = [i % number for i in local_index], global_index % number
        self.used = sorted({*self.local_index, self.global_index})
        self.multiple = math.lcm(STRIDE, *self.strides)  # pixels, of the padded sides
        self.local_stride = max(STRIDE, min(self.strides[i] for i in self.local_index))
        self.global_stride = self.local_stride if components else self.strides[self.global_index]
        number = sum(self.map_channels[i] for i in self.local_index)
        self.components = min(components, number)
        if components:
            self.register_buffer("offset", torch.zeros(self.components))
            self.register_buffer("axes", torch.zeros(self.components, number))
        self.head: nn.Module | None = None  # a recipe's module from the native local map to probabilities
        self.frozen = Frozen(net) if frozen else None
        if not frozen:
            self.trained = net
        self._radius = Radius()

    @property
    def net(self) -> nn.Module:
        """The user's module."""
        return self.trained if self.frozen is None else self.frozen.net

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        super()._apply(fn, recurse)
        if self.frozen is not None:
            self.frozen.net._apply(fn, recurse)
        return self

    def get_extra_state(self) -> Tensor:
        """SHA-256 of frozen weights, uint8 [32]. Empty if the weights are saved."""
        return torch.tensor([] if self.frozen is None else list(self.frozen.sha256), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the hash of a checkpoint with that of the weights.

        Raises:
            DataError: the hashes differ.
        """
        own = self.get_extra_state()
        if not torch.equal(state.cpu(), own):
            was, now = (bytes(x.tolist()).hex()[:12] or "none" for x in (state, own))
            raise DataError(
                f"the frozen backbone {self.source} has other weights than the run was trained with: sha256 {now}, "
                f"not {was}"
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        h, w = x.shape[2] // STRIDE, x.shape[3] // STRIDE
        local, deep = self.native(x)
        if self.head is None:
            return [resampled(local, self.local_stride, STRIDE)[:, :, :h, :w], deep]
        probs = resampled(self.head(local), self.local_stride, STRIDE)[:, :, :h, :w]
        return [probs.clamp_min(MIN_PROBABILITY).log(), deep]

    def native(self, x: Tensor, project: bool = True) -> tuple[Tensor, Tensor]:
        """The local map at the smallest stride of its parts, at least 4, and the global map. The
        local map covers the padding too.

        Args:
            project: whether the principal components replace the local map, if there are any.
        """
        stride = self.global_stride
        rows, columns = ((n + stride - 1) // stride for n in x.shape[2:])  # exported graphs round to 0
        found = self.maps(padded(x, self.multiple))
        parts = [resampled(found[i], self.strides[i], self.local_stride) for i in self.local_index]
        local = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if self.components and project:
            local = F.conv2d(local, self.axes[:, :, None, None], self.offset)
        deep = local if self.components else found[self.global_index]
        return local, deep[:, :, :rows, :columns]

    @torch.no_grad()
    def set_components(self, local: Tensor) -> None:
        """Compute the leading principal components of local features [n, C], scaled to variance 1."""
        mean = local.double().mean(dim=0)
        covariance = torch.cov(local.double().T, correction=0)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values[-self.components :].flip(0), vectors[:, -self.components :].flip(1)
        axes = (vectors * vectors.sum(dim=0).sign() / values.clamp_min(EPSILON).sqrt()).T
        self.axes.copy_(axes)
        self.offset.copy_(-axes @ mean)

    def maps(self, x: Tensor) -> dict[int, Tensor]:
        """The used maps by index, for images whose sides are multiples of the strides."""
        if self.frozen is None:
            return self._chosen(x)
        with torch.no_grad():
            cache = self.frozen.cache
            if cache is None or x.is_cuda or recorded():
                return self._chosen(x)
            h, w = x.shape[2:]
            shapes = [(self.map_channels[i], h // self.strides[i], w // self.strides[i]) for i in self.used]

            # One image at a time, so that the bits of its maps do not depend on the batch.
            def compute(image: Tensor) -> list[Tensor]:
                return [values[0] for values in self._chosen(image[None]).values()]

            of_images = [cache.maps(image, shapes, compute) for image in x]
            return {i: torch.stack(maps) for i, maps in zip(self.used, zip(*of_images, strict=True), strict=True)}

    def _chosen(self, x: Tensor) -> dict[int, Tensor]:
        found = self.net(x)
        return {i: found[i] for i in self.used}

    def receptive_radius(self) -> int | None:
        """Number of pixels each way that a position depends on. None: more than
        MAX_RECEPTIVE_RADIUS, for example with attention or squeeze-excitation, or the features
        depend on the place in the image, for example with attention in windows.

        It is measured with NaN in some pixels, which spreads to every position that reads them.
        """
        if self._radius.pixels is None:
            radius = max(self._measured_radius(dim) for dim in (2, 3))
            if radius <= MAX_RECEPTIVE_RADIUS and not all(self._moves_with_images(dim, radius) for dim in (2, 3)):
                radius = UNKNOWN_RADIUS
            self._radius.pixels = radius
        return self._radius.pixels if self._radius.pixels <= MAX_RECEPTIVE_RADIUS else None

    @torch.no_grad()
    def _measured_radius(self, dim: int) -> int:
        net, like = self.net, next(self.net.parameters(), torch.zeros(()))
        training = net.training
        net.eval()
        reach = -(-MAX_RECEPTIVE_RADIUS // self.multiple) * self.multiple + self.multiple
        images = torch.zeros(1, self.in_channels, -(-LEAST_SIDE // self.multiple) * self.multiple, 2 * reach)
        images[..., reach : reach + self.multiple] = torch.nan  # all phases of the strides
        maps = self(images.to(like) if dim == 3 else images.mT.contiguous().to(like))
        net.train(training)
        radius = 0
        for values, stride in zip(maps, (STRIDE, self.global_stride), strict=True):
            seen = values.isnan().movedim(dim, -1).flatten(0, -2).any(dim=0).nonzero()
            if not len(seen):  # the network replaces NaN
                return UNKNOWN_RADIUS
            first, last = int(seen.min()) * stride, (int(seen.max()) + 1) * stride
            radius = max(radius, reach - first, last - reach - self.multiple)
        return radius

    @torch.no_grad()
    def _moves_with_images(self, dim: int, radius: int) -> bool:
        """Whether the maps of a part of an image are those of the image, away from the borders of the
        part. The part begins at a multiple of the strides, as the windows of tiles do.
        """
        net, like = self.net, next(self.net.parameters(), torch.zeros(()))
        training = net.training
        net.eval()
        step = self.multiple
        border = -(-radius // step) * step
        size = 1, self.in_channels, -(-LEAST_SIDE // step) * step, 2 * border + -(-LEAST_SIDE // step) * step + step
        images = torch.rand(size, generator=torch.Generator().manual_seed(0))
        images = (images if dim == 3 else images.mT.contiguous()).to(like)
        whole = self.native(images, project=False)
        part = self.native(images.narrow(dim, step, size[3] - step).contiguous(), project=False)
        net.train(training)
        for values, others, stride in zip(whole, part, (self.local_stride, self.global_stride), strict=True):
            number = (size[3] - step - 2 * border) // stride
            values = values.narrow(dim, (step + border) // stride, number)
            others = others.narrow(dim, border // stride, number)
            if (values - others).abs().max() > MAX_DIFFERENCE * values.abs().max():
                return False
        return True


def probed(net: nn.Module, channels: int) -> tuple[list[int], list[int]]:
    """The channels and the strides of the maps that a module returns. Two sizes of images are tried.

    Raises:
        DataError: the module does not return such maps.
    """
    sizes = (PROBE_SIDE, PROBE_SIDE)
    maps = maps_of_size(net, channels, sizes)
    for i, x in enumerate(maps):
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[2] != x.shape[3] or PROBE_SIDE % x.shape[2]:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(
                "--backbone: the module must return a list of maps [B, channels, h, w] whose strides divide "
                f"{PROBE_SIDE}; map {i} of an image of {PROBE_SIDE} x {PROBE_SIDE} px is {found}"
            )
        if x.dtype != torch.float32:
            raise DataError(f"--backbone: the module must return float32 maps; map {i} is {x.dtype}")
    strides = [PROBE_SIDE // x.shape[2] for x in maps]
    multiple = math.lcm(STRIDE, *strides)
    height = -(-LEAST_SIDE // multiple) * multiple
    sizes = (height, height + multiple)
    for i, (x, stride) in enumerate(zip(maps_of_size(net, channels, sizes), strides, strict=True)):
        if x.shape[2:] != tuple(n // stride for n in sizes):
            raise DataError(
                f"--backbone: map {i} of an image of {PROBE_SIDE} x {PROBE_SIDE} px has stride {stride}, and of one "
                f"of {sizes[0]} x {sizes[1]} px it is {list(x.shape)}"
            )
    return [x.shape[1] for x in maps], strides


def maps_of_size(net: nn.Module, channels: int, sizes: tuple[int, int]) -> list[Tensor]:
    """The maps of an image of zeros with these sizes.

    Raises:
        DataError: the module cannot take it.
    """
    training = net.training
    try:
        with torch.no_grad():
            maps = list(net.eval()(torch.zeros(1, channels, *sizes)))
    except Exception as error:  # the module is the user's: it may raise anything
        reason = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"--backbone: the module cannot take images of {channels} channels and {sizes[0]} x {sizes[1]} px: "
            f"{reason[0]}"
        ) from error
    net.train(training)
    return maps


def resampled(maps: Tensor, stride: int, wanted: int) -> Tensor:
    """Maps [B, c, h, w] of a stride, resampled to the wanted stride."""
    if stride == wanted:
        return maps
    if stride > wanted:
        return F.interpolate(maps, scale_factor=stride / wanted, mode="bilinear", align_corners=False)
    return F.interpolate(maps, scale_factor=stride / wanted, mode="area")


def build(
    *,
    backbone: str,
    weights: str | None,
    frozen: bool,
    local_index: Sequence[int],
    global_index: int,
    in_channels: int,
    num_classes: int,
    dim: int,
    components: int = 0,
    pretrained: bool = False,
) -> InfoSegNet:
    """A network on a backbone, in training mode.

    Args:
        backbone: "timm:NAME" or "MODULE:FUNCTION".
        weights: file of the backbone's weights, or None.
        frozen, local_index, global_index, components: as in `Backbone`.
        in_channels, num_classes, dim: as in `InfoSegNet`.
        pretrained: whether timm fetches weights if there is no file. It always does for a frozen
            backbone.

    Raises:
        DataError: the backbone cannot be built, or its file cannot be read.
    """
    net = module_of(backbone, weights, in_channels, pretrained or frozen)
    source = backbone if weights is None else f"{backbone} with {weights}"
    wrapped = Backbone(net, local_index, global_index, in_channels, frozen, source, components)
    model = InfoSegNet.from_backbone(wrapped, 0, 1, num_classes, dim)
    mean, std = normalization(net, in_channels)
    model.set_normalization(mean or [0.0] * in_channels, std or [1.0] * in_channels)
    with torch.no_grad():
        model.eval()(torch.zeros(1, in_channels, PROBE_SIDE, PROBE_SIDE))  # the projections find their channels
    return model.train()


def frozen_network(backbone: str, weights: str | None, local_index: Sequence[int], channels: int) -> InfoSegNet:
    """A frozen backbone for the local features of images. Its global features have no meaning."""
    network = build(
        backbone=backbone, weights=weights, frozen=True, local_index=local_index, global_index=-1,
        in_channels=channels, num_classes=2, dim=1,
    )  # fmt: skip
    return network.requires_grad_(False).eval()


def cache_features(backbone: Backbone) -> None:
    """Cache the maps of a frozen backbone on disk from now on."""
    if backbone.frozen is not None:
        # Modules with the same weights may compute other maps from them, for example with another
        # activation.
        image = torch.rand(1, backbone.in_channels, PROBE_SIDE, PROBE_SIDE, generator=torch.Generator().manual_seed(0))
        maps = hash_of({str(i): values for i, values in backbone.maps(padded(image, backbone.multiple)).items()})
        key = f"{backbone.frozen.sha256.hex()} {maps.hex()} {backbone.used} torch {torch.__version__}"
        backbone.frozen.cache = FeatureCache(key)
