"""Local and deep features of windows of an image, equal to those of the whole image.

A window is a part of the padded image. It contains every pixel that a feature of its tile depends
on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .model import STRIDE, Encoder, InfoSegNet

Area = tuple[range, range]  # rows and columns


class Features(NamedTuple):
    """The features of a tile.

    Attributes:
        local: [B, C, h, w], the positions that were asked for.
        deep: [B, channels] float64, sums over the positions of the global map that begin in the
            tile. None: they were not asked for.
        positions: the number of these positions, or the sum of their weights.
    """

    local: Tensor
    deep: Tensor | None
    positions: int | Tensor


class Layer(NamedTuple):
    """A 3x3 convolution with its normalisation. `skip`: it ends a residual block of two layers."""

    weight: Tensor
    bias: Tensor
    stride: int
    skip: bool


class EncoderWindows:
    """Windows of an `InfoSegNet` on its own encoder, blocks A to D.

    Batch normalisation is folded into the convolutions, whose maps are channels-last. A convolution
    computes only the positions that are needed. Maps are padded only at the border of the image.

    Attributes:
        multiple, grain: pixels; tiles and windows begin at multiples of them.
    """

    multiple, grain = 16, STRIDE

    def __init__(self, network: InfoSegNet) -> None:
        self.network, blocks = network, network.backbone
        assert isinstance(blocks, Encoder)
        pairs: list[tuple[Any, Any, bool]] = [(b[0], b[1], False) for b in (blocks.A, blocks.B[0])]
        for block in blocks.C:
            pairs += [(block.body[0][0], block.body[0][1], False), (block.body[1], block.body[2], True)]
        self.num_local = len(pairs)
        pairs += [(b[0], b[1], False) for b in blocks.D]
        self.layers = [_folded(*pair) for pair in pairs]
        edge = range(2**20, 2**20 + 1)  # a position far from any border
        self.local_reach, self.deep_reach = (
            stride * edge.start - self._inputs(layers, edge, 2**40)[0].start
            for stride, layers in ((STRIDE, self.layers[: self.num_local]), (self.multiple, self.layers))
        )

    def reach(self, margin: int) -> int:
        """Number of pixels beyond a tile that its features depend on.

        Args:
            margin: number of local positions beyond the tile that are computed too.
        """
        sobel = int(self.network.inputs == "sobel")
        return max(self.local_reach + STRIDE * margin, self.deep_reach) + sobel

    def features(
        self,
        window: Tensor,
        inside: Area,
        image: tuple[int, int],
        local: Area,
        tile: Area | None,
        mask: Tensor | None = None,
    ) -> Features:
        """The features of a tile.

        Args:
            window: float [B, c, H, W] in [0, 1], without padding.
            inside: rows and columns of the padded image that the window covers.
            image: (rows, columns) of the padded image.
            local: rows and columns of the positions of block C that are returned.
            tile: rows and columns of the padded image. The positions of block D that begin in it
                are summed. None: no position is.
            mask: bool [1, h, w], the positions of block C in `inside` that have data. A position of
                block D is weighted by its share of them. None: all have data.
        """
        size = -(-image[0] // STRIDE), -(-image[1] // STRIDE)
        wanted, shallow, deep = local, self.layers[: self.num_local], self.layers[self.num_local :]
        if tile is not None:
            blocks = areas(lambda r: range(r.start // self.multiple, -(-r.stop // self.multiple)), tile)
            read = areas(lambda d, n: self._inputs(deep, d, n)[0], blocks, size)
            wanted = areas(lambda a, b: range(min(a.start, b.start), max(a.stop, b.stop)), local, read)
        maps = self._run(shallow, self.network.normalize(window), inside, image, wanted)
        found = crop(maps, wanted, local)
        if tile is None:
            return Features(found, None, 0)
        global_maps = self._run(deep, maps, wanted, size, blocks)
        return Features(found, *_summed(global_maps, _shares(mask, inside, blocks, self.multiple)))

    @staticmethod
    def _inputs(layers: Sequence[Layer], outputs: range, size: int) -> list[range]:
        """The positions that each layer reads along one axis, and last the outputs themselves.

        Args:
            size: length of the map that the first layer reads.
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
        """The maps after the layers at the `wanted` positions, from maps at the `inside` ones."""
        rows, columns = (self._inputs(layers, w, n) for w, n in zip(wanted, size, strict=True))
        maps = crop(maps, inside, (rows[0], columns[0])).contiguous(memory_format=torch.channels_last)
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
    """Windows of a network on any other backbone. The backbone has the attributes `multiple` and
    `global_stride` (pixels) and the method `receptive_radius()` (pixels).
    """

    def __init__(self, network: InfoSegNet) -> None:
        self.network, backbone = network, cast(Any, network.backbone)
        self.backbone, self.radius = backbone, int(backbone.receptive_radius())
        self.multiple = self.grain = int(backbone.multiple)

    def reach(self, margin: int) -> int:
        """As in `EncoderWindows`."""
        return self.radius + STRIDE * margin

    def features(
        self,
        window: Tensor,
        inside: Area,
        image: tuple[int, int],
        local: Area,
        tile: Area | None,
        mask: Tensor | None = None,
    ) -> Features:
        """As in `EncoderWindows`."""
        maps = self.backbone(self.network.normalize(window))
        found, global_maps = (maps[i] for i in self.network._indices)
        found = crop(found, areas(lambda r: range(r.start // STRIDE, -(-r.stop // STRIDE)), inside), local)
        if tile is None:
            return Features(found, None, 0)
        stride = self.backbone.global_stride
        there, wanted = (
            areas(lambda r: range(r.start // stride, -(-r.stop // stride)), area) for area in (inside, tile)
        )
        return Features(found, *_summed(crop(global_maps, there, wanted), _shares(mask, inside, wanted, stride)))


def windows_of(network: nn.Module) -> EncoderWindows | BackboneWindows | None:
    """The windows of a network; None where a feature may depend on the whole image."""
    if not isinstance(network, InfoSegNet):
        return None
    if isinstance(network.backbone, Encoder):
        return EncoderWindows(network)
    radius: Any = getattr(network.backbone, "receptive_radius", None)
    return None if radius is None or radius() is None else BackboneWindows(network)


def areas(function: Callable[..., range], *pairs: Sequence[Any]) -> Area:
    """The function of the rows of all pairs, and of their columns."""
    rows, columns = (function(*of_axis) for of_axis in zip(*pairs, strict=True))
    return rows, columns


def crop(maps: Tensor, inside: Area, wanted: Area) -> Tensor:
    """The wanted rows and columns of maps [B, C, h, w] at `inside` rows and columns."""
    rows, columns = (slice(w.start - i.start, w.stop - i.start) for i, w in zip(inside, wanted, strict=True))
    return maps[:, :, rows, columns]


def _shares(mask: Tensor | None, inside: Area, wanted: Area, stride: int) -> Tensor | None:
    """The shares of the positions with data in each `wanted` position of `stride` pixels, [1, 1, m,
    n]. `mask` [1, h, w] has the positions of `inside`.
    """
    if mask is None:
        return None
    rows, columns = (
        slice((stride * w.start - i.start) // STRIDE, (stride * w.stop - i.start) // STRIDE)
        for i, w in zip(inside, wanted, strict=True)
    )
    there = mask[:, None, rows, columns].to(torch.float64)
    return F.avg_pool2d(there, stride // STRIDE, ceil_mode=True, count_include_pad=False)


def _summed(maps: Tensor, shares: Tensor | None) -> tuple[Tensor, int | Tensor]:
    """Sums over the positions in float64, weighted by the shares, and the sum of the weights."""
    if shares is None:
        return maps.sum(dim=(2, 3), dtype=torch.float64), maps.shape[2] * maps.shape[3]
    return (maps * shares).sum(dim=(2, 3)), shares.sum()


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d, skip: bool) -> Layer:
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    return Layer(weight, bias.detach(), convolution.stride[0], skip)
