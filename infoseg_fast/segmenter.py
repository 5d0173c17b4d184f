"""`Segmenter`: label maps of whole images of any size, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import CHECKPOINTS, LAST
from .data.base import scaled_size
from .data.images import IGNORE
from .errors import DataError
from .model import STRIDE, padded, padded_side
from .ops import segment, segment_and_count
from .ops.confusion_matrix import confusion_matrix
from .recipe.labelling import Labelling
from .recipe.refinement import REACH, SURROUNDINGS_RADIUS, Colours, colours_of
from .recipe.smoothing import MAX_RADIUS
from .run_folder import RunFolder

MAX_PIXELS = 2**20  # larger images are segmented in tiles
TILE = 768  # pixels
# Pixels around a tile that smoothing reads, and that the surroundings of a refinement read.
SMOOTHING, SURROUNDINGS = STRIDE * MAX_RADIUS, STRIDE * (SURROUNDINGS_RADIUS + 1)
UPSAMPLING_MARGIN = 2  # positions around a tile that the upsampling of its probabilities reads


class Piece(NamedTuple):
    """The probabilities of a part of the images, and the place of its labels.

    `probs` [B, K, h, w] cover labels of `size`. The labels from (above, left_of) on fill `rows` and
    `columns` of the label map. `colours` are those of the covered pixels, None without a
    refinement.
    """

    probs: Tensor
    colours: Colours | None
    size: tuple[int, int]
    above: int
    left_of: int
    rows: slice
    columns: slice


class Tile(NamedTuple):
    """A part of the padded images, `rows` x `columns`. `pixels` begin at `first` and reach beyond
    the part.
    """

    pixels: Tensor
    first: tuple[int, int]
    rows: range
    columns: range

    def part(self, maps: Tensor, stride: int, margin: int) -> Tensor:
        """The part of maps of `pixels` at a stride, with a margin of positions where there are any."""
        parts = []
        for first, inside in zip(self.first, (self.rows, self.columns), strict=True):
            start = max(inside.start // stride - margin, 0) - first // stride
            parts.append(slice(start, -(-(inside.stop - first) // stride) + margin))
        return maps[:, :, parts[0], parts[1]]


class Segmenter:
    """Label maps of whole images of any size, by a labelling.

    Args:
        labelling: what turns images into labels. Its device is the segmenter's.
        mapping: class of each cluster (-1: none), where an evaluation found it.
    """

    def __init__(self, labelling: Labelling, mapping: list[int] | None = None) -> None:
        self.labelling, self.mapping = labelling, mapping
        self.scale = labelling.data.scale  # factor by which images are resized before they enter the network

    @property
    def num_clusters(self) -> int:
        """K, the number of labels."""
        return self.labelling.num_clusters

    def segment(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Label maps of whole images.

        Args:
            images: float [B, c, H_img, W_img] in [0, 1], any size, on the model's device.
            size: (rows, columns) of the label maps; None for that of the images.

        Returns:
            Clusters 0 .. K - 1, [B, *size] uint8.

        Raises:
            ValueError: the shape or the number of channels is wrong, or a value is not finite.
        """
        self._check(images)
        size = (images.shape[2], images.shape[3]) if size is None else (size[0], size[1])
        labels = torch.empty(len(images), *size, dtype=torch.uint8, device=images.device)
        for piece in self._pieces(images, size):
            found = self._labels(piece)
            part = labels[:, piece.rows, piece.columns]
            part.copy_(found[:, piece.above :, piece.left_of :][:, : part.shape[1], : part.shape[2]])
        return labels

    def count(self, images: Tensor, target: Tensor, num_classes: int) -> Tensor:
        """Joint counts int64 [K, num_classes] of the segmentation at the target's size and the
        target.

        images as in `segment`; target [B, H, W] uint8 on their device, 255 where there is no ground
        truth.
        """
        self._check(images)
        counts = torch.zeros(self.num_clusters, num_classes, dtype=torch.int64, device=images.device)
        for piece in self._pieces(images, (target.shape[1], target.shape[2])):
            part = target[:, piece.rows, piece.columns]
            below = piece.size[0] - piece.above - part.shape[1]
            right_of = piece.size[1] - piece.left_of - part.shape[2]
            # What the features cover beyond the part counts as not labelled.
            framed = F.pad(part, (piece.left_of, right_of, piece.above, below), value=IGNORE)
            found: Any
            if piece.colours is None:
                found = segment_and_count(
                    piece.probs,
                    self._classes(piece.probs),
                    framed,
                    num_classes=num_classes,
                    interpolate="logits",
                    ignore_index=IGNORE,
                    check=True,
                )
            else:
                labels = self._labels(piece)
                found = confusion_matrix(labels, framed, self.num_clusters, num_classes, IGNORE, check=True)
            counts += found
        return counts

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [B, c, H_img, W_img], not {images.dtype} {list(images.shape)}")
        if not torch.isfinite(images).all():
            raise ValueError("images must be finite, but hold NaN or infinity")

    def _labels(self, piece: Piece) -> Tensor:
        """Labels [B, *size] of everything that the piece covers."""
        if piece.colours is not None and self.labelling.refinement is not None:
            return self.labelling.refinement.labels(piece.probs, piece.colours, piece.size)
        return segment(piece.probs, self._classes(piece.probs), size=piece.size, interpolate="logits")

    def _colours(self, images: Tensor, probs: Tensor) -> Colours | None:
        """The colours of padded images that the probabilities cover; None without a refinement."""
        refinement = self.labelling.refinement
        return None if refinement is None else colours_of(images, (probs.shape[2], probs.shape[3]), refinement.radius)

    @staticmethod
    def _classes(probs: Tensor) -> Tensor:
        """Global features with which the similarities of `probs`, taken as local features, are the
        probabilities.
        """
        return torch.eye(probs.shape[1], dtype=probs.dtype, device=probs.device).expand(len(probs), -1, -1)

    @torch.no_grad()
    def _pieces(self, images: Tensor, size: tuple[int, int]) -> Iterator[Piece]:
        """Every piece of the images, for label maps of `size`."""
        if self.scale != 1:
            inner = scaled_size((images.shape[2], images.shape[3]), self.scale)
            images = F.interpolate(images, size=inner, mode="bilinear", antialias=True)
        inner = images.shape[2], images.shape[3]
        # Tiles at other sizes would not join without a seam.
        halo = self._halo() if inner[0] * inner[1] > MAX_PIXELS and size == inner else None
        if halo is not None:
            yield from self._tiled(images, halo)
            return
        probs = self.labelling.probabilities(images)
        # The network saw the images with their padding. The labels cover it too.
        rows, columns = (max(m, round(m * padded_side(n) / n)) for n, m in zip(inner, size, strict=True))
        colours = self._colours(padded(images), probs)
        yield Piece(probs, colours, (rows, columns), 0, 0, slice(0, size[0]), slice(0, size[1]))

    def _halo(self) -> int | None:
        """Pixels around a tile that its labels depend on. None: tiles would not join without a
        seam, since a position depends on the whole image.
        """
        backbone: Any = getattr(self.labelling.network, "backbone", None)
        radius = backbone.receptive_radius() if hasattr(backbone, "receptive_radius") else None
        if radius is None or TILE % backbone.multiple:
            return None
        margin = UPSAMPLING_MARGIN if self.labelling.refinement is None else REACH
        halo = max(radius + SMOOTHING, SURROUNDINGS) + STRIDE * margin
        # Tiles begin at whole positions of all maps, so that they give the same maps as the whole
        # image.
        return -(-halo // backbone.multiple) * backbone.multiple

    def _tiled(self, images: Tensor, halo: int) -> Iterator[Piece]:
        """Two passes over the tiles: the mean of block D, which gives the global features, then the
        local features.
        """
        network: Any = self.labelling.network
        inputs = network.normalize(images)
        margin = UPSAMPLING_MARGIN if self.labelling.refinement is None else REACH
        total: Any = 0.0
        positions = 0
        for tile in self._tiles(inputs, halo):
            deep = tile.part(network.backbone(tile.pixels)[1], network.backbone.global_stride, margin=0)
            total = total + deep.sum(dim=(2, 3), dtype=torch.float64)
            positions += deep.shape[2] * deep.shape[3]
        global_features = network.global_features((total / positions).to(images.dtype))
        for tile, original in zip(self._tiles(inputs, halo), self._tiles(padded(images), halo), strict=True):
            probs = self.labelling.assign(network.backbone(tile.pixels)[0], global_features)
            colours = self._colours(original.pixels, probs)
            probs = tile.part(probs, STRIDE, margin)
            if colours is not None:
                around = tile.part(colours.around, STRIDE, margin)
                colours = Colours(tile.part(colours.pixels, 1, STRIDE * margin), around)
            size = (STRIDE * probs.shape[2], STRIDE * probs.shape[3])
            rows, columns = (slice(r.start, r.stop) for r in (tile.rows, tile.columns))
            above, left_of = (min(r.start, STRIDE * margin) for r in (rows, columns))
            yield Piece(probs, colours, size, above, left_of, rows, columns)

    @staticmethod
    def _tiles(padded: Tensor, halo: int) -> Iterator[Tile]:
        rows, columns = ([range(start, min(start + TILE, n)) for start in range(0, n, TILE)] for n in padded.shape[2:])
        for r in rows:
            for c in columns:
                first = max(r.start - halo, 0), max(c.start - halo, 0)
                pixels = padded[:, :, first[0] : r.stop + halo, first[1] : c.stop + halo]
                yield Tile(pixels, first, r, c)


def load(run: str | Path, checkpoint: str = LAST, device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a training run.

    Args:
        run: the RUN folder.
        checkpoint: "last" or "best_loss" (lowest training loss).
        device: where it works.

    Raises:
        DataError: there is no such run or checkpoint, it is damaged, or it is of another layout
            version.
    """
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
    return Segmenter(labelling, found["mapping"] if found else None), content["step"]
