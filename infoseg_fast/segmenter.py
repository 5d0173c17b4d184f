"""`Segmenter`: label maps of whole images of any size, from a trained network, in bounded memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoint as checkpoints
from .data.base import scaled_size
from .data.images import IGNORE
from .errors import DataError
from .model import STRIDE, Encoder, InfoSegNet, padded, padded_side
from .ops import assign, segment, segment_and_count
from .ops.confusion_matrix import confusion_matrix
from .recipe.refinement import Colours, Refinement, colours, refined_labels
from .reference import neighbourhood_mean

# Images of more pixels are worked on in tiles. Around a tile the network reads what it sees to one side, at most 72 px:
# block C 44, block D 56, with smoothing 16 more. The surroundings of a refinement (24 px) are nearer.
MAX_PIXELS = 2**20
TILE, SEEN, DEEP_STRIDE = 768, 72, 16
MARGIN = 2  # positions around a tile that upsampling its probabilities reads
MAX_SMOOTH = 4  # positions

EVALUATION = "evaluation.json"  # in a RUN: the scores of its last evaluation, with the matching


class Piece(NamedTuple):
    """Class probabilities of a part of the images, and where the part's labels go.

    `size` is that of the labels all `probs` [B, K, h, w] cover; of these, the ones from (above, left_of) on fill rows,
    columns. `colours` are of the pixels that the probabilities cover, None without a refinement.
    """

    probs: Tensor
    colours: Colours | None
    size: tuple[int, int]
    above: int
    left_of: int
    rows: slice
    columns: slice


class Tile(NamedTuple):
    """A part of the padded images, `rows` x `columns`, in pixels that reach beyond it and begin at `first`."""

    pixels: Tensor
    first: tuple[int, int]
    rows: range
    columns: range

    def part(self, maps: Tensor, stride: int, margin: int) -> Tensor:
        """Of maps of `pixels` at a stride: the tile, with a margin of positions where there are any."""
        parts = []
        for first, inside in zip(self.first, (self.rows, self.columns), strict=True):
            start = max(inside.start // stride - margin, 0) - first // stride
            parts.append(slice(start, -(-(inside.stop - first) // stride) + margin))
        return maps[:, :, parts[0], parts[1]]


class Segmenter:
    """Segments images with a network.

    Args:
        model: the network.
        temperature: tau of its training.
        smooth: probabilities are averaged over 2 smooth + 1 positions each way before they are upsampled.
        scale: factor by which images are resized before they enter the network.
        classes: names of the classes, if any.
        mapping: class of each cluster (-1: none), if an evaluation has found it.
        raw_scale: factor by which the training images had been resized when their set was made: files as they were
            downloaded need it too (`infoseg predict` applies it).
        refinement: what the pixels of each class look like, for labels that follow the pixels' colours; None: labels
            are of the upsampled probabilities alone.
        groups: of the network's classes; those of a group are one cluster, and its probability is the sum of theirs.
            None: every class is a cluster.
    """

    def __init__(
        self,
        model: InfoSegNet,
        temperature: float = 1.0,
        scale: float = 1.0,
        classes: list[str] | None = None,
        mapping: list[int] | None = None,
        raw_scale: float = 1.0,
        smooth: int = 0,
        refinement: Refinement | None = None,
        groups: list[list[int]] | None = None,
    ) -> None:
        if not 0 <= smooth <= MAX_SMOOTH:
            raise ValueError(f"smooth must be from 0 to {MAX_SMOOTH}, not {smooth!r}")
        self.model, self.temperature, self.scale, self.raw_scale = model, temperature, scale, raw_scale
        if groups is not None and sorted(k for group in groups for k in group) != list(range(model.num_classes)):
            raise ValueError(f"groups must have each of the {model.num_classes} classes once, not {groups}")
        self.smooth, self.refinement, self.groups = smooth, refinement, groups
        self.classes, self.mapping = classes, mapping

    @property
    def num_clusters(self) -> int:
        return self.model.num_classes if self.groups is None else len(self.groups)

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
        size = tuple(images.shape[2:]) if size is None else tuple(size)
        labels = torch.empty(len(images), *size, dtype=torch.uint8, device=images.device)
        for piece in self._pieces(images, size):
            found = self._labels(piece)
            part = labels[:, piece.rows, piece.columns]
            part.copy_(found[:, piece.above :, piece.left_of :][:, : part.shape[1], : part.shape[2]])
        return labels

    def count(self, images: Tensor, target: Tensor, num_classes: int) -> Tensor:
        """Joint counts int64 [K, num_classes] of the segmentation at the target's size and the target.

        images as in `segment`; target [B, H, W] uint8 on their device, 255 where there is no ground truth.
        """
        self._check(images)
        counts = torch.zeros(self.num_clusters, num_classes, dtype=torch.int64, device=images.device)
        for piece in self._pieces(images, tuple(target.shape[1:])):
            part = target[:, piece.rows, piece.columns]
            below = piece.size[0] - piece.above - part.shape[1]
            right_of = piece.size[1] - piece.left_of - part.shape[2]
            # What the features cover beyond the part counts as not labelled.
            framed = F.pad(part, (piece.left_of, right_of, piece.above, below), value=IGNORE)
            if piece.colours is None:
                counts += segment_and_count(
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
                counts += confusion_matrix(labels, framed, self.num_clusters, num_classes, IGNORE, check=True)
        return counts

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [B, c, H_img, W_img], not {images.dtype} {list(images.shape)}")
        if not torch.isfinite(images).all():
            raise ValueError("images must be finite, but hold NaN or infinity")

    def _labels(self, piece: Piece) -> Tensor:
        """Labels [B, *size] of all that the piece covers."""
        if piece.colours is not None:
            return refined_labels(piece.probs, piece.colours, self.refinement, piece.size)
        return segment(piece.probs, self._classes(piece.probs), size=piece.size, interpolate="logits")

    def _colours(self, images: Tensor, probs: Tensor) -> Colours | None:
        """What a refinement looks at, of padded images that the probabilities cover."""
        return None if self.refinement is None else colours(images, probs.shape[2:], self.refinement.radius)

    def assign(self, images: Tensor) -> Tensor:
        """Probabilities [B, K, h, w] of the positions of images as for `segment`, at the network's scale."""
        return self._assign(*self.model(images))

    def _assign(self, features: Tensor, global_features: Tensor) -> Tensor:
        """Probabilities [B, K, h, w] of the positions, smoothed."""
        projection = self.model.local_projection
        probs = assign(features, global_features, projection.weight, projection.bias, temperature=self.temperature)
        if self.groups is not None:
            probs = torch.stack([probs[:, group].sum(dim=1) for group in self.groups], dim=1)
        return neighbourhood_mean(probs, self.smooth)

    @staticmethod
    def _classes(probs: Tensor) -> Tensor:
        """Global features with which the similarities of `probs`, taken as local features, are the probabilities."""
        return torch.eye(probs.shape[1], dtype=probs.dtype, device=probs.device).expand(len(probs), -1, -1)

    @torch.no_grad()
    def _pieces(self, images: Tensor, size: tuple[int, int]) -> Iterator[Piece]:
        """Every piece of the images, for label maps of `size`."""
        training = self.model.training
        self.model.eval()
        try:
            if self.scale != 1:
                inner = scaled_size(tuple(images.shape[2:]), self.scale)
                images = F.interpolate(images, size=inner, mode="bilinear", antialias=True)
            inner = tuple(images.shape[2:])
            # Tiles of other blocks or at other sizes would not join without a seam.
            if inner[0] * inner[1] > MAX_PIXELS and size == inner and isinstance(self.model.backbone, Encoder):
                yield from self._tiled(images)
                return
            probs = self.assign(images)
            # The network saw the images with their padding: the labels cover that too.
            covered = tuple(max(m, round(m * padded_side(n) / n)) for n, m in zip(inner, size, strict=True))
            yield Piece(
                probs, self._colours(padded(images), probs), covered, 0, 0, slice(0, size[0]), slice(0, size[1])
            )
        finally:
            self.model.train(training)

    def _tiled(self, images: Tensor) -> Iterator[Piece]:
        """Two passes over the tiles: the mean of block D, whence the global features; then the local features again."""
        inputs = self.model.normalize(images)
        margin = MARGIN if self.refinement is None else self.refinement.reach
        # The tile's corners stay whole positions of block D, so that tiles give the same maps as the whole image.
        halo = -(-(SEEN + STRIDE * margin) // DEEP_STRIDE) * DEEP_STRIDE
        total, positions = 0.0, 0
        for tile in self._tiles(inputs, halo):
            deep = tile.part(self.model.backbone(tile.pixels)[1], DEEP_STRIDE, margin=0)
            total = total + deep.sum(dim=(2, 3), dtype=torch.float64)
            positions += deep.shape[2] * deep.shape[3]
        global_features = self.model.global_features((total / positions).to(images.dtype))
        for tile, as_it_is in zip(self._tiles(inputs, halo), self._tiles(padded(images), halo), strict=True):
            probs = self._assign(self.model.backbone(tile.pixels)[0], global_features)
            seen = self._colours(as_it_is.pixels, probs)
            probs = tile.part(probs, STRIDE, margin)
            if seen is not None:
                around = tile.part(seen.around, STRIDE, margin)
                seen = Colours(tile.part(seen.pixels, 1, STRIDE * margin), around)
            size = (STRIDE * probs.shape[2], STRIDE * probs.shape[3])
            rows, columns = (slice(r.start, r.stop) for r in (tile.rows, tile.columns))
            above, left_of = (min(r.start, STRIDE * margin) for r in (rows, columns))
            yield Piece(probs, seen, size, above, left_of, rows, columns)

    @staticmethod
    def _tiles(padded: Tensor, halo: int) -> Iterator[Tile]:
        rows, columns = ([range(start, min(start + TILE, n)) for start in range(0, n, TILE)] for n in padded.shape[2:])
        for r in rows:
            for c in columns:
                first = max(r.start - halo, 0), max(c.start - halo, 0)
                pixels = padded[:, :, first[0] : r.stop + halo, first[1] : c.stop + halo]
                yield Tile(pixels, first, r, c)


def load(run: str | Path, checkpoint: str = "last", device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter that a training run made.

    Args:
        run: the run's folder.
        checkpoint: "last" or "best_loss" (lowest training loss).
        device: where it works.

    Raises:
        DataError: there is no such run or checkpoint, or it is damaged.
    """
    run = Path(run)
    if checkpoint not in checkpoints.CHECKPOINTS:
        raise DataError(f"--checkpoint must be one of {', '.join(checkpoints.CHECKPOINTS)}, not {checkpoint!r}")
    if not run.is_dir():
        raise DataError(f"run {run} does not exist")
    state = checkpoints.load(run, checkpoint)
    if state is None:
        raise DataError(f"run {run} has no checkpoint {checkpoint!r} yet")
    return from_state(state, device, evaluation_of(run, checkpoint, state["step"]))


def from_state(state: dict, device: str | torch.device, evaluation: dict | None = None) -> Segmenter:
    """The segmenter of a checkpoint's state."""
    model = InfoSegNet(**state["network"])
    model.load_state_dict(state["model"])
    settings = state["prediction"]
    refinement = settings.get("refinement")
    return Segmenter(
        model.to(device).eval(),
        settings["temperature"],
        settings["scale"],
        settings["class_names"],
        evaluation and evaluation["mapping"],
        settings.get("raw_scale", 1.0),
        settings.get("smooth", 0),
        refinement and Refinement(**refinement).to(device),
        settings.get("groups"),
    )


def evaluation_of(run: Path, checkpoint: str, step: int) -> dict | None:
    """The scores last found for a checkpoint of the run; None when there are none for its present state."""
    try:
        found = json.loads((run / EVALUATION).read_text()).get(checkpoint)
    except (OSError, ValueError):
        return None
    return found if found and found["step"] == step else None


def record_evaluation(run: Path, checkpoint: str, step: int, split: str, scores: dict) -> None:
    """Keep the scores of a checkpoint in the run, beside those of the others."""
    try:
        record = json.loads((run / EVALUATION).read_text())
    except (OSError, ValueError):
        record = {}
    record[checkpoint] = {"step": step, "split": split} | scores
    checkpoints.write_atomically(run / EVALUATION, (json.dumps(record, indent=1) + "\n").encode())
