"""`Segmenter`: label maps of whole images of any size, in bounded memory."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import CHECKPOINTS, LAST
from .data.base import scaled_size
from .data.images import IGNORE, described_with, read_with
from .encoding import Area, Features, crop, windows_of
from .errors import DataError
from .model import STRIDE, padded, padded_side
from .ops import segment
from .ops.confusion_matrix import count_pairs
from .recipe.labelling import Labelling
from .recipe.refinement import REACH, SURROUNDINGS_RADIUS, Colours, colours_of
from .run_folder import RunFolder
from .tiling import Band, Plan, Tile, make_plan, shrinking, upsampling, weighted

TILE = 512  # pixels, a side: the maps of a tile fit into a processor's cache
PROCESS = os.getpid()  # that imported this module
BATCH_PIXELS = 2**20  # pixels that are segmented together, of several images
KEPT_BYTES = 2**28  # of windows and features that the first pass keeps for the second
SCORE_BYTES = 2**25  # of a map of all classes at the resolution of labels
UNREFINED_MARGIN = 1  # positions around a tile that the upsampling of its probabilities reads


class Part(NamedTuple):
    """Rows and columns of the label maps.

    Attributes:
        area: the rows and columns.
        labels: [B, rows, columns] uint8; 255 where a pixel has no data.
        confidence: the probability of the label in per cent, [B, rows, columns] uint8, 255 where a
            pixel has no data. None unless it was asked for.
    """

    area: Area
    labels: Tensor
    confidence: Tensor | None


class Seen(NamedTuple):
    """What the labels of a tile follow from: probabilities [B, K, h, w] at `positions`, and the
    colours of the `pixels` that these cover, None without a refinement.
    """

    probs: Tensor
    positions: Area
    colours: Colours | None
    pixels: Area


class Segmenter:
    """Label maps of whole images of any size, by a labelling.

    Images are segmented in tiles, in two passes: the mean of the global map over the whole image,
    which gives the global features, then the labels. The label maps do not depend on the tiles. A
    network whose features depend on the whole image gets the whole image instead.

    Args:
        labelling: what turns images into labels. Its device is the segmenter's.
        mapping: class of each cluster (-1: none), where an evaluation found it.
    """

    def __init__(self, labelling: Labelling, mapping: list[int] | None = None) -> None:
        self.labelling, self.mapping = labelling, mapping
        self.scale = labelling.data.scale  # factor by which images are resized before they enter the network
        self._windows = windows_of(labelling.network)

    @property
    def num_clusters(self) -> int:
        """K, the number of labels."""
        return self.labelling.num_clusters

    @property
    def tiled(self) -> bool:
        """Whether images are segmented in tiles; else the network gets the whole image."""
        return self._windows is not None

    def with_clusters(self, number: int) -> Segmenter:
        """A segmenter with the same network and label maps of `number` clusters, which is any
        number up to that of the network's classes. Its clusters are matched to no class.

        Raises:
            DataError: the run has no over-clusters, or fewer than `number`.
        """
        if number == self.num_clusters:
            return self
        found = Segmenter(self.labelling.with_clusters(number))
        found.scale = self.scale
        return found

    def segment(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label maps of whole images.

        Args:
            images: float [B, c, H_img, W_img] in [0, 1], any size, on the model's device.
            size: (rows, columns) of the label maps; None for that of the images.

        Returns:
            Clusters 0 .. K - 1, [B, *size] uint8.

        Raises:
            ValueError: the shape, the size or the number of channels is wrong, or a value is not
                finite.
        """
        images = self._checked(images)
        size = (images.shape[2], images.shape[3]) if size is None else _checked_size(size)
        labels = torch.empty(len(images), *size, dtype=torch.uint8, device=images.device)
        for images_of, chosen in self._batches(images):
            for part in self._parts_of(images_of, size):
                rows, columns = part.area
                labels[chosen, rows.start : rows.stop, columns.start : columns.stop] = part.labels
        return labels

    def segment_array(self, pixels: np.ndarray | Tensor, valid: np.ndarray | None = None) -> np.ndarray:
        """The label map of an image with values as a file stores them.

        Args:
            pixels: [c, rows, columns] or [rows, columns], of the kind of values that the run was
                trained on (`labelling.data.scaling.dtype`). The limits of the training images scale
                them.
                Of a masked array, pixels that are masked in every channel have none.
            valid: bool [rows, columns], False where a pixel has no data.

        Returns:
            [rows, columns] uint8; 255 where a pixel has no data.

        Raises:
            ValueError: the number of channels or the type of the values is not the run's, or
                `valid` has another shape.
        """
        stored = pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
        stored = stored[None] if stored.ndim == 2 else stored
        if stored.ndim != 3 or 0 in stored.shape:
            raise ValueError(f"pixels must be [c, rows, columns], not {list(stored.shape)}")
        self.check_values(stored.shape[0], stored.dtype)
        valid = None if valid is None else np.asarray(valid, dtype=bool)
        if valid is not None and valid.shape != stored.shape[1:]:
            raise ValueError(f"valid must be bool {list(stored.shape[1:])}, not {list(valid.shape)}")
        if isinstance(pixels, np.ma.MaskedArray):
            present: np.ndarray = ~np.all(np.ma.getmaskarray(pixels).reshape(stored.shape), axis=0)
            valid = present if valid is None else valid & present
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            finite = np.isfinite(stored).all(axis=0)
            valid, stored = finite if valid is None else valid & finite, np.nan_to_num(stored, posinf=0, neginf=0)
        size = stored.shape[1], stored.shape[2]
        place = range(size[0]), range(size[1])
        band = self.band(stored.astype(stored.dtype.newbyteorder("="), copy=False), place, valid)
        return self._assembled(self.plan(size), itertools.repeat(band))

    def segment_file(self, path: str | os.PathLike) -> np.ndarray:
        """The label map of an image file, read as the training images were.

        Returns:
            [rows, columns] uint8; 255 where a pixel has no data.

        Raises:
            DataError: the file cannot be read, or has other channels or another type of values
                than the training images.
        """
        path, options = Path(os.fsdecode(path)), self.labelling.data.reading
        described = described_with(path, options)[0]
        plan = self.plan((described.height, described.width))
        return self._assembled(plan, self.read_bands(path, plan))

    def read_bands(self, path: Path, plan: Plan, page: int = 0) -> Iterator[Band]:
        """The parts of an image file in the order of the plan."""
        for rows, columns in plan.regions():
            window = rows.start, columns.start, len(rows), len(columns)
            image = read_with(path, self.labelling.data.reading, page, window)
            try:
                self.check_values(len(image.pixels), image.pixels.dtype)
            except ValueError as error:
                raise DataError(f"image {path}: {error}") from None
            yield self.band(image.pixels, (rows, columns), image.valid)

    def band(self, pixels: np.ndarray, place: Area, valid: np.ndarray | None) -> Band:
        """A part of an image, of stored values [c, rows, columns]."""
        data = self.labelling.data
        return Band(pixels, place, valid, data.scaling, data.channels)

    def check_values(self, channels: int, dtype: np.dtype) -> None:
        """ValueError unless images of so many channels and of such values can be segmented."""
        data = self.labelling.data
        if channels not in (1, data.channels):
            raise ValueError(f"{channels} channels; the run was trained on {data.channels}")
        if not data.scaling.accepts(dtype):
            raise ValueError(f"values of {np.dtype(dtype)}; the run was trained on {data.scaling.dtype}")

    def count(self, images: Tensor, target: Tensor, num_classes: int) -> Tensor:
        """Joint counts int64 [K, num_classes] of the segmentation at the target's size and the
        target.

        images as in `segment`; target [B, H, W] uint8 on their device, 255 where there is no ground
        truth.
        """
        counts, outside, nonfinite = self.count_without_waiting(images, target, num_classes)
        raise_for(int(outside), int(nonfinite))
        return counts

    def count_without_waiting(self, images: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """The result of `count`, the number of target values out of range, and that of values of
        the images that are not finite, for `raise_for`: all on the device of the images.
        """
        images = self._checked_shape(images)
        counts = torch.zeros(self.num_clusters, num_classes, dtype=torch.int64, device=images.device)
        outside = torch.zeros((), dtype=torch.int64, device=images.device)
        for images_of, chosen in self._batches(images):
            for part in self._parts_of(images_of, (target.shape[1], target.shape[2])):
                rows, columns = part.area
                truth = target[chosen, rows.start : rows.stop, columns.start : columns.stop]
                found, left_out = count_pairs(part.labels, truth, self.num_clusters, num_classes, IGNORE)
                counts += found
                if left_out is not None:  # a CPU raises
                    outside += left_out
        return counts, outside, (~torch.isfinite(images)).sum()

    def plan(
        self, native: tuple[int, int], size: tuple[int, int] | None = None, confidence: bool = False, images: int = 1
    ) -> Plan:
        """How an image, or several of one size, is read and labelled.

        Args:
            native: (rows, columns) of the image.
            size: of the label map; None for that of the image.
            confidence: whether `parts` gives the confidence too.
            images: that are segmented together.
        """
        data, windows = self.labelling.data, self._windows
        network: Any = self.labelling.network
        inner, size = scaled_size(native, self.scale), size or native
        multiple, grain = (STRIDE, STRIDE) if windows is None else (windows.multiple, windows.grain)
        padded_size = padded_side(inner[0]), padded_side(inner[1])
        if windows is None:
            side, reach, keep = max(padded_size) + multiple, 0, True
        else:
            reach = windows.reach(self._margin + self.labelling.smooth)
            side = max(TILE, 2 * reach)  # of a network that sees far, windows are mostly border
            if self.labelling.refinement is not None:
                surroundings = STRIDE * (self._margin + SURROUNDINGS_RADIUS) + self.labelling.refinement.radius
                reach = max(reach, surroundings)
            if confidence or size != inner:
                while side > 2 * multiple and self.num_clusters * 4 * side**2 > SCORE_BYTES:
                    side //= 2
            features = network.local_projection.in_channels / STRIDE**2
            keep = images * 4 * (data.channels + features) * padded_size[0] * padded_size[1] <= KEPT_BYTES
        row_bytes = (
            data.channels * np.dtype(data.scaling.dtype).itemsize * (native[0] * native[1]) / (inner[0] * inner[1])
        )
        return make_plan(
            native,
            inner,
            padded_size,
            size,
            side=side,
            multiple=multiple,
            grain=grain,
            reach=reach,
            row_bytes=row_bytes,
            keep=keep,
        )

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.labelling.network.parameters()).device

    @property
    def _margin(self) -> int:
        """Positions around a tile that its labels depend on."""
        return UNREFINED_MARGIN if self.labelling.refinement is None else REACH

    @torch.no_grad()
    def parts(self, plan: Plan, bands: Iterator[Band], confidence: bool = False) -> Iterator[Part]:
        """The label maps part by part, strip after strip from the top, each from left to right.

        Args:
            plan: of `plan`.
            bands: the regions of the plan, in its order.
            confidence: give the confidence too.
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
        """The window of a tile without padding, float [B, c, rows, columns] in [0, 1], as the
        network sees it.
        """
        inner = plan.inner_window(tile)
        if plan.native == plan.inner:
            return band.floats(inner, self.device)
        stored = plan.stored_window(tile)
        pixels = band.floats(stored, self.device)
        for dim, outputs, n, m, read in zip((2, 3), inner, plan.native, plan.inner, stored, strict=True):
            pixels = weighted(pixels, dim, shrinking(outputs, n, m), read.start)
        return pixels

    def _mask(self, plan: Plan, band: Band, tile: Tile) -> Tensor | None:
        """The positions of a tile's window whose pixels all have data, bool [1, h, w]; None if all
        are.
        """
        inner = plan.inner_window(tile)
        pixels = [
            ((np.array(part) + 0.5) * m / n).astype(np.intp)
            for part, n, m in zip(inner, plan.inner, plan.native, strict=True)
        ]
        valid = band.valid_at(*pixels)
        if valid is None:
            return None
        missing = torch.from_numpy(~valid).to(self.device)[None, None].float()
        return F.max_pool2d(padded(missing), STRIDE)[:, 0] == 0

    def _features(self, plan: Plan, window: Tensor, tile: Tile, deep: bool, mask: Tensor | None = None) -> Features:
        assert self._windows is not None
        wanted = self._positions(plan, tile, self._margin + self.labelling.smooth)
        whole = (tile.rows, tile.columns) if deep else None
        return self._windows.features(window, tile.window, plan.padded, wanted, whole, mask)

    @staticmethod
    def _positions(plan: Plan, tile: Tile, margin: int) -> Area:
        """The positions of a tile, with a margin where the image has them."""
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
        seen, area = Seen(probs, here, None, (rows, columns)), plan.output(tile)
        if refinement is not None:
            framed = padded(window)
            positions = framed.shape[2] // STRIDE, framed.shape[3] // STRIDE
            found = colours_of(framed, positions, refinement.radius, self._mask(plan, band, tile))
            r, c = (range(part.start // STRIDE, part.stop // STRIDE) for part in tile.window)
            colours = Colours(crop(found.pixels, tile.window, seen.pixels), crop(found.around, (r, c), here))
            seen = seen._replace(colours=colours)
        labels = self._labels(seen, area) if plan.size == plan.inner else None
        shares = None
        if labels is None or confidence:
            labels, shares = self._shares(plan, seen, area, labels)
        percent = (100 * shares).round().to(torch.uint8) if shares is not None and confidence else None
        invalid = band.invalid(area) if plan.size == plan.native else None
        if invalid is not None:
            mask = torch.from_numpy(invalid).to(labels.device)
            labels = labels.masked_fill(mask, IGNORE)
            percent = None if percent is None else percent.masked_fill(mask, IGNORE)
        return Part(area, labels, percent)

    def _labels(self, seen: Seen, area: Area) -> Tensor:
        """The labels of an area, where labels have the size of the pixels."""
        if self.labelling.refinement is not None and seen.colours is not None:
            labels = self.labelling.refinement.labels(seen.probs, seen.colours)
        else:
            size = len(seen.pixels[0]), len(seen.pixels[1])
            labels = segment(seen.probs, _identity(seen.probs), size=size, interpolate="logits")
        return crop(labels[:, None], seen.pixels, area)[:, 0]

    def _shares(self, plan: Plan, seen: Seen, area: Area, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Labels of an area of the label map, and their probabilities, from interpolated maps.

        Args:
            labels: those whose probabilities are wanted. None: the most probable ones.
        """
        refinement = self.labelling.refinement
        if refinement is not None and seen.colours is not None:
            maps, inside, stride = refinement.scores(seen.probs, seen.colours), seen.pixels, 1
        else:
            maps, inside, stride = seen.probs.float(), seen.positions, STRIDE
        if stride == 1 and plan.size == plan.inner:
            maps = crop(maps, inside, area)
        else:
            for axis in (0, 1):
                last = plan.padded[axis] // stride - 1
                weights = upsampling(area[axis], plan.inner[axis], plan.size[axis], stride, last)
                maps = weighted(maps, axis + 2, weights, inside[axis].start)
        if labels is None:
            labels = maps.argmax(dim=1).to(torch.uint8)
        shares = maps.gather(1, labels[:, None].long())[:, 0]
        if refinement is not None:
            shares = (shares - maps.logsumexp(dim=1)).exp()
        return labels, shares.clamp(0, 1)

    def _batches(self, images: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Groups of images that are segmented together, and their indices."""
        number = max(1, BATCH_PIXELS // max(images.shape[2] * images.shape[3], 1))
        for first in range(0, len(images), number):
            chosen = slice(first, first + number)
            yield images[chosen], chosen

    def _parts_of(self, images: Tensor, size: tuple[int, int]) -> Iterator[Part]:
        place = range(images.shape[2]), range(images.shape[3])
        plan = self.plan((len(place[0]), len(place[1])), size, images=len(images))
        return self.parts(plan, itertools.repeat(Band(images, place)))

    def _assembled(self, plan: Plan, bands: Iterator[Band]) -> np.ndarray:
        labels = np.empty(plan.size, dtype=np.uint8)
        for part in self.parts(plan, bands):
            rows, columns = part.area
            labels[rows.start : rows.stop, columns.start : columns.stop] = part.labels[0].cpu().numpy()
        return labels

    def _checked(self, images: Tensor) -> Tensor:
        """The images as float32."""
        images = self._checked_shape(images)
        raise_for(0, int((~torch.isfinite(images)).sum()))
        return images

    def _checked_shape(self, images: Tensor) -> Tensor:
        """The images as float32, whatever their values."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, not {type(images).__name__} (segment_array takes stored values)")
        if images.dim() != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
            raise ValueError(f"images must be float [B, c, H_img, W_img], not {images.dtype} {list(images.shape)}")
        if images.shape[1] != self.labelling.data.channels:
            raise ValueError(f"images must have {self.labelling.data.channels} channels, not {images.shape[1]}")
        return images.float()


def raise_for(outside: int, nonfinite: int) -> None:
    """ValueError if there were values that `Segmenter.count_without_waiting` does not take."""
    if nonfinite:
        raise ValueError("images must be finite, but hold NaN or infinity")
    if outside:
        raise ValueError(f"target holds {outside} values that are neither a class nor {IGNORE}")


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    try:
        rows, columns = map(operator.index, size)
    except (TypeError, ValueError):
        rows = columns = 0
    if min(rows, columns) < 1:
        raise ValueError(f"size must be two whole numbers (rows, columns) of at least 1, not {size!r}")
    return rows, columns


def _identity(probs: Tensor) -> Tensor:
    """Global features with which the similarities of `probs`, taken as local features, are the
    probabilities.
    """
    return torch.eye(probs.shape[1], dtype=probs.dtype, device=probs.device).expand(len(probs), -1, -1)


def load(run: str | Path, checkpoint: str = LAST, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a training run.

    It works in forked and in spawned processes. PyTorch then computes with one thread in a forked
    one, since OpenMP waits for ever for the threads of its parent.

    Args:
        run: the RUN folder.
        checkpoint: "last" or "best_loss" (lowest training loss).
        device: where it works.

    Raises:
        DataError: there is no such run or checkpoint, it is damaged, or it is of another layout
            version.
    """
    if os.getpid() != PROCESS:
        torch.set_num_threads(1)
    return load_with_step(run, checkpoint, device)[0]


def load_with_step(run: str | Path, checkpoint: str, device: str | torch.device) -> tuple[Segmenter, int]:
    """As `load`, with the step of the checkpoint."""
    folder = RunFolder(run)
    if checkpoint not in CHECKPOINTS:
        raise DataError(f"--checkpoint must be one of {', '.join(CHECKPOINTS)}, not {checkpoint!r}")
    if not folder.path.is_dir():
        raise DataError(f"run {run} does not exist")
    content = folder.load(checkpoint)
    if content is None:
        raise DataError(f"run {run} has no checkpoint {checkpoint!r} yet")
    found = folder.evaluation(checkpoint, content["step"])
    labelling = Labelling.from_state(content["labelling"]).to(device)
    return Segmenter(labelling, found["mapping"] if found and found["num_pixels"] else None), content["step"]
