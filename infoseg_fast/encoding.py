"""Local and deep features of windows of an image, equal to those of the whole image.

A window is a part of the padded image. It reaches so far beyond its tile that every feature of the
tile depends on pixels of the window, or of the image's border, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .model import STRIDE, Encoder, InfoSegNet

Area = tuple[range, range]  # rows and columns


class Features(NamedTuple):
    """What a window gives.

    Attributes:
        local: [B, C, h, w], the positions that were asked for.
        deep: [B, channels], sums over the positions of the global map that begin in the tile, in
            float64.
        positions: the number of those positions.
    """

    local: Tensor
    deep: Tensor
    positions: int


class Layer(NamedTuple):
    """A 3x3 convolution with its normalisation. `skip`: it ends a residual block of two layers."""

    weight: Tensor
    bias: Tensor
    stride: int
    skip: bool


class EncoderWindows:
    """Windows of an `InfoSegNet` on its own encoder, blocks A to D.

    Batch normalisation is folded into the convolutions, whose maps are channels-last. A convolution
    computes the positions that are asked for and no other. Maps are padded at the border of the
    image only.

    Attributes:
        multiple: pixels; tiles begin at multiples of it.
    """

    multiple = 16

    def __init__(self, network: InfoSegNet) -> None:
        self.network, blocks = network, network.backbone
        assert isinstance(blocks, Encoder)
        pairs: list[tuple[Any, Any, bool]] = [(b[0], b[1], False) for b in (blocks.A, blocks.B[0])]
        for block in blocks.C:
            pairs += [(block.body[0][0], block.body[0][1], False), (block.body[1], block.body[2], True)]
        self.num_local = len(pairs)
        pairs += [(b[0], b[1], False) for b in blocks.D]
        self.layers = [_folded(*pair) for pair in pairs]
        edge = range(2**20, 2**20 + 1)  # a position that no border is near
        self.local_reach, self.deep_reach = (
            stride * edge.start - self._inputs(layers, edge, 2**40)[0].start
            for stride, layers in ((STRIDE, self.layers[: self.num_local]), (self.multiple, self.layers))
        )

    def reach(self, margin: int) -> int:
        """Pixels beyond a tile that its features depend on.

        Args:
            margin: local positions beyond the tile that are wanted.
        """
        sobel = int(self.network.inputs == "sobel")
        return max(self.local_reach + STRIDE * margin, self.deep_reach) + sobel

    def features(self, window: Tensor, inside: Area, image: tuple[int, int], tile: Area, local: Area) -> Features:
        """The features of a tile.

        Args:
            window: [B, c, H, W] in [0, 1].
            inside: rows and columns of the padded image that the window has.
            image: size of the padded image.
            tile: rows and columns of the padded image. The positions of block D are those that
                begin in it.
            local: rows and columns of the positions of block C that are wanted.
        """
        deep = tuple(range(r.start // 16, -(-r.stop // 16)) for r in tile)
        sizes = [tuple(-(-n // STRIDE) for n in image)]
        # Positions of block C that block D or the caller needs.
        needed = [self._inputs(self.layers[self.num_local :], d, n)[0] for d, n in zip(deep, sizes[0], strict=True)]
        both = tuple(range(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(local, needed, strict=True))
        inputs = self.network.normalize(window.contiguous(memory_format=torch.channels_last))
        maps = self._run(self.layers[: self.num_local], inputs, inside, image, both)
        deep_maps = self._run(self.layers[self.num_local :], maps, both, sizes[0], deep)
        sums = deep_maps.sum(dim=(2, 3), dtype=torch.float64)
        return Features(crop(maps, both, local), sums, deep_maps.shape[2] * deep_maps.shape[3])

    @staticmethod
    def _inputs(layers: Sequence[Layer], outputs: range, size: int) -> list[range]:
        """The positions that each layer reads along one axis, and last the outputs themselves.

        Args:
            size: of the map that the first layer reads.
        """
        sizes = [size]
        for layer in layers:
            sizes.append(-(-sizes[-1] // layer.stride))
        ranges = [outputs]
        for layer, n in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
            first, last = (layer.stride * i for i in (ranges[0].start, ranges[0].stop - 1))
            ranges.insert(0, range(max(first - 1, 0), min(last + 2, n)))
        return ranges

    def _run(self, layers: Sequence[Layer], maps: Tensor, inside: Area, size: Sequence[int], wanted: Area) -> Tensor:
        """The maps after the layers at the wanted positions, from maps at `inside` positions."""
        rows, columns = (self._inputs(layers, w, n) for w, n in zip(wanted, size, strict=True))
        maps = crop(maps, inside, (rows[0], columns[0]))
        before = maps
        for i, layer in enumerate(layers):
            frame = []
            for read, made, n in ((columns[i], columns[i + 1], maps.shape[3]), (rows[i], rows[i + 1], maps.shape[2])):
                first = layer.stride * made.start - 1
                frame += [read.start - first, layer.stride * (made.stop - 1) + 2 - read.start - n]
            padded = F.pad(maps, frame, mode="reflect") if any(frame) else maps
            block, before = before, maps
            maps = F.conv2d(padded, layer.weight, layer.bias, layer.stride)
            if layer.skip:
                maps += crop(block, (rows[i - 1], columns[i - 1]), (rows[i + 1], columns[i + 1]))
            maps.relu_()
        return maps


class BackboneWindows:
    """Windows of a network on any backbone that says how far its maps see: attributes `multiple`
    and `global_stride` (pixels), and `receptive_radius()`.
    """

    def __init__(self, network: InfoSegNet) -> None:
        self.network, backbone = network, cast(Any, network.backbone)
        self.backbone, self.multiple, self.radius = backbone, int(backbone.multiple), int(backbone.receptive_radius())

    def reach(self, margin: int) -> int:
        """As of `EncoderWindows`."""
        return self.radius + STRIDE * margin

    def features(self, window: Tensor, inside: Area, image: tuple[int, int], tile: Area, local: Area) -> Features:
        """As of `EncoderWindows`."""
        maps = self.backbone(self.network.normalize(window))
        found, deep = (maps[i] for i in self.network._indices)
        stride = self.backbone.global_stride
        here, there = (tuple(range(r.start // s, -(-r.stop // s)) for r in inside) for s in (STRIDE, stride))
        deep = crop(deep, there, tuple(range(r.start // stride, -(-r.stop // stride)) for r in tile))
        sums = deep.sum(dim=(2, 3), dtype=torch.float64)
        return Features(crop(found, here, local), sums, deep.shape[2] * deep.shape[3])


def windows_of(network: nn.Module) -> EncoderWindows | BackboneWindows | None:
    """The windows of a network; None where a feature may depend on the whole image."""
    if not isinstance(network, InfoSegNet):
        return None
    if isinstance(network.backbone, Encoder):
        return EncoderWindows(network)
    radius: Any = getattr(network.backbone, "receptive_radius", None)
    return None if radius is None or radius() is None else BackboneWindows(network)


def crop(maps: Tensor, inside: Area, wanted: Area) -> Tensor:
    """The wanted rows and columns of maps [B, C, h, w] at `inside` rows and columns."""
    rows, columns = (slice(w.start - i.start, w.stop - i.start) for i, w in zip(inside, wanted, strict=True))
    return maps[:, :, rows, columns]


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d, skip: bool) -> Layer:
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    return Layer(weight, bias.detach(), convolution.stride[0], skip)
