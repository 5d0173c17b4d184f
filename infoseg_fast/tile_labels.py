"""The label map of an image, tile by tile, in two passes and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data.images import IGNORE
from .encoding import Area, Features, crop, windows_of
from .model import STRIDE, padded, padded_side
from .ops import segment
from .position import with_position
from .recipe.labelling import Labelling
from .recipe.refinement import REACH, SURROUNDINGS_RADIUS, Colours, colours_of
from .tiling import Band, Plan, Tile, make_plan, shrinking, upsampling, weighted

TILE = 512  # pixels, side of a tile: the maps of a tile fit into a processor's cache
KEPT_BYTES = 2**28  # largest windows and features that the first pass keeps for the second
SCORE_BYTES = 2**25  # largest map of all classes at the resolution of the labels
UNREFINED_MARGIN = 1  # positions around a tile that the upsampling of its probabilities reads


class Part(NamedTuple):
    """Some rows and columns of the label maps.

    Attributes:
        area: the rows and columns.
        labels: [B, rows, columns] uint8; 255 where a pixel has no data.
        confidence: the probability of the label in per cent, [B, rows, columns] uint8; 255 where a
            pixel has no data. None unless it was asked for.
    """

    area: Area
    labels: Tensor
    confidence: Tensor | None


class TileMaps(NamedTuple):
    """The maps that the labels of a tile are computed from.

    Attributes:
        probs: probabilities [B, K, h, w].
        positions: rows and columns of `probs` in the map of the whole image.
        pixels: rows and columns of the pixels that the positions cover.
        colours: colours of these pixels; None without a refinement.
    """

    probs: Tensor
    positions: Area
    pixels: Area
    colours: Colours | None


class TileLabeller:
    """Computes the label maps of whole images in tiles.

    The first pass forms the mean of the global map over the whole image, which gives the global
    features. The second pass forms the labels. They do not depend on the tiles. A network whose
    features depend on the whole image gets the whole image as one tile.
    """

    def __init__(self, labelling: Labelling) -> None:
        self.labelling = labelling
        self._windows = windows_of(labelling.network)

    @property
    def tiled(self) -> bool:
        """Whether images are cut into tiles."""
        return self._windows is not None

    def plan(
        self, native: tuple[int, int], inner: tuple[int, int], size: tuple[int, int], confidence: bool, images: int
    ) -> Plan:
        """The order in which images are read and labelled.

        Args:
            native: (rows, columns) of the images as stored.
            inner: (rows, columns) of the images that the network gets.
            size: (rows, columns) of the label maps.
            confidence: whether `parts` gives the confidence too.
            images: number of images that are segmented together.
        """
        data, windows = self.labelling.data, self._windows
        network: Any = self.labelling.network
        multiple, grain = (STRIDE, STRIDE) if windows is None else (windows.multiple, windows.grain)
        padded_size = padded_side(inner[0]), padded_side(inner[1])
        if windows is None:
            side, reach, keep = max(padded_size) + multiple, 0, True
        else:
            reach = windows.reach(self._margin + self.labelling.smooth)
            side = max(TILE, 2 * reach)  # else the windows of a network that sees far are mostly border
            if self.labelling.refinement is not None:
                surroundings = STRIDE * (self._margin + SURROUNDINGS_RADIUS) + self.labelling.refinement.radius
                reach = max(reach, surroundings)
            if confidence or size != inner:
                while side > 2 * multiple and self.labelling.num_clusters * 4 * side**2 > SCORE_BYTES:
                    side //= 2
            features = network.local_projection.in_channels / STRIDE**2
            keep = images * 4 * (data.channels + features) * padded_size[0] * padded_size[1] <= KEPT_BYTES
        pixel_bytes = data.channels * np.dtype(data.scaling.dtype).itemsize
        return make_plan(
            native, inner, padded_size, size,
            side=side, multiple=multiple, grain=grain, reach=reach, keep=keep,
            pixel_bytes=pixel_bytes * (native[0] * native[1]) / (inner[0] * inner[1]),
        )  # fmt: skip

    @property
    def _device(self) -> torch.device:
        return next(self.labelling.network.parameters()).device

    @property
    def _margin(self) -> int:
        """Positions around a tile that its labels depend on."""
        return UNREFINED_MARGIN if self.labelling.refinement is None else REACH

    @torch.no_grad()
    def parts(self, plan: Plan, bands: Iterator[Band], confidence: bool = False) -> Iterator[Part]:
        """The label maps part by part: strips from top to bottom, each from left to right.

        Args:
            plan: result of `plan`.
            bands: the regions of the plan, in its order.
            confidence: whether the parts have the confidence too.
        """
        network: Any = self.labelling.network
        kept: list[tuple[Band, Tensor, Tensor]] = []
        total: Any = 0.0
        positions: Any = 0
        for strip in plan.strips:
            band = next(bands)
            for tile in strip:
                window, mask = self._window(plan, band, tile), self._mask(plan, band, tile)
                if self._windows is None:
                    local, global_features = self.labelling.maps(window, mask)
                else:
                    features = self._features(plan, window, tile, deep=True, mask=mask)
                    local, total, positions = features.local, total + features.deep, positions + features.positions
                if plan.passes == 1:
                    kept.append((band, window, local))
        if self._windows is not None:
            mean = (total / positions).nan_to_num()  # 0 / 0 where no position has data
            global_features = network.global_features(mean.float())
        waiting = iter(kept)
        for strip in plan.strips:
            if plan.passes == 2:
                band = next(bands)
            for tile in strip:
                if plan.passes == 1:
                    band, window, local = next(waiting)
                else:
                    window = self._window(plan, band, tile)
                    local = self._features(plan, window, tile, deep=False).local
                yield self._part(plan, band, tile, window, self.labelling.assign(local, global_features), confidence)

    def _window(self, plan: Plan, band: Band, tile: Tile) -> Tensor:
        """The window of a tile without padding as the network gets it, float [B, inputs, rows,
        columns] in [0, 1].
        """
        pixels = self._pixels(plan, band, tile)
        if not self.labelling.data.position:
            return pixels
        rows = plan.inner_window(tile)[0]
        return with_position(pixels, torch.tensor([[rows.start, plan.inner[0]]], device=pixels.device))

    def _pixels(self, plan: Plan, band: Band, tile: Tile) -> Tensor:
        """The channels of a tile's window without padding, resized for the network."""
        inner = plan.inner_window(tile)
        if plan.native == plan.inner:
            return band.floats(inner, self._device)
        stored = plan.stored_window(tile)
        pixels = band.floats(stored, self._device)
        for dim, outputs, n, m, read in zip((2, 3), inner, plan.native, plan.inner, stored, strict=True):
            pixels = weighted(pixels, dim, shrinking(outputs, n, m), read.start)
        return pixels

    def _mask(self, plan: Plan, band: Band, tile: Tile) -> Tensor | None:
        """The positions of a tile's window whose pixels all have data, bool [1, h, w]. None: all
        positions.
        """
        inner = plan.inner_window(tile)
        pixels = [
            ((np.array(part) + 0.5) * m / n).astype(np.intp)
            for part, n, m in zip(inner, plan.inner, plan.native, strict=True)
        ]
        valid = band.valid_at(*pixels)
        if valid is None:
            return None
        missing = torch.from_numpy(~valid).to(self._device)[None, None].float()
        return F.max_pool2d(padded(missing), STRIDE)[:, 0] == 0

    def _features(self, plan: Plan, window: Tensor, tile: Tile, deep: bool, mask: Tensor | None = None) -> Features:
        assert self._windows is not None
        wanted = self._positions(plan, tile, self._margin + self.labelling.smooth)
        whole = (tile.rows, tile.columns) if deep else None
        return self._windows.features(window, tile.window, plan.padded, wanted, whole, mask)

    @staticmethod
    def _positions(plan: Plan, tile: Tile, margin: int) -> Area:
        """The positions of a tile and of a margin around it, inside the image."""
        rows, columns = (
            range(max(part.start // STRIDE - margin, 0), min(part.stop // STRIDE + margin, n // STRIDE))
            for part, n in zip((tile.rows, tile.columns), plan.padded, strict=True)
        )
        return rows, columns

    def _part(self, plan: Plan, band: Band, tile: Tile, window: Tensor, probs: Tensor, confidence: bool) -> Part:
        """The labels of a tile, from the probabilities of its positions."""
        smooth, refinement = self.labelling.smooth, self.labelling.refinement
        here = self._positions(plan, tile, self._margin)
        if self._windows is not None and smooth:
            probs = crop(probs, self._positions(plan, tile, self._margin + smooth), here)
        rows, columns = (range(STRIDE * r.start, STRIDE * r.stop) for r in here)
        maps, area = TileMaps(probs, here, (rows, columns), None), plan.output(tile)
        if refinement is not None:
            framed = padded(window[:, : self.labelling.data.channels])
            positions = framed.shape[2] // STRIDE, framed.shape[3] // STRIDE
            found = colours_of(framed, positions, refinement.radius, self._mask(plan, band, tile))
            r, c = (range(part.start // STRIDE, part.stop // STRIDE) for part in tile.window)
            colours = Colours(crop(found.pixels, tile.window, maps.pixels), crop(found.around, (r, c), here))
            maps = maps._replace(colours=colours)
        labels = self._labels(maps, area) if plan.size == plan.inner else None
        probabilities = None
        if labels is None or confidence:
            labels, probabilities = self._interpolated(plan, maps, area, labels)
        percent = (100 * probabilities).round().to(torch.uint8) if probabilities is not None and confidence else None
        invalid = band.invalid(area) if plan.size == plan.native else None
        if invalid is not None:
            mask = torch.from_numpy(invalid).to(labels.device)
            labels = labels.masked_fill(mask, IGNORE)
            percent = None if percent is None else percent.masked_fill(mask, IGNORE)
        return Part(area, labels, percent)

    def _labels(self, maps: TileMaps, area: Area) -> Tensor:
        """The labels of an area, where the label map has one label for each pixel."""
        if self.labelling.refinement is not None and maps.colours is not None:
            labels = self.labelling.refinement.labels(maps.probs, maps.colours)
        else:
            size = len(maps.pixels[0]), len(maps.pixels[1])
            labels = segment(maps.probs, _identity(maps.probs), size=size, interpolate="logits")
        return crop(labels[:, None], maps.pixels, area)[:, 0]

    def _interpolated(self, plan: Plan, maps: TileMaps, area: Area, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels of an area of the label map and their probabilities, from interpolated scores.

        Args:
            labels: the labels whose probabilities are computed. None: the most probable labels.
        """
        refinement = self.labelling.refinement
        if refinement is not None and maps.colours is not None:
            scores, inside, stride = refinement.scores(maps.probs, maps.colours), maps.pixels, 1
        else:
            scores, inside, stride = maps.probs.float(), maps.positions, STRIDE
        if stride == 1 and plan.size == plan.inner:
            scores = crop(scores, inside, area)
        else:
            for axis in (0, 1):
                last = plan.padded[axis] // stride - 1
                weights = upsampling(area[axis], plan.inner[axis], plan.size[axis], stride, last)
                scores = weighted(scores, axis + 2, weights, inside[axis].start)
        if labels is None:
            labels = scores.argmax(dim=1).to(torch.uint8)
        found = scores.gather(1, labels[:, None].long())[:, 0]
        if refinement is not None:  # the scores are logarithms
            found = (found - scores.logsumexp(dim=1)).exp()
        return labels, found.clamp(0, 1)


def _identity(probs: Tensor) -> Tensor:
    """Global features for `segment` with probabilities as features: the similarities are then the
    probabilities.
    """
    return torch.eye(probs.shape[1], dtype=probs.dtype, device=probs.device).expand(len(probs), -1, -1)
