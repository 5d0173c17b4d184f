"""`PreparedSet`: a folder that `infoseg prepare` made. Its shards are mapped into memory."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..scores.matching import match_clusters
from .base import ImageSet, Pixels
from .images import IGNORE
from .prepare import FORMAT, INDEX, INDEX_FILE, MANIFEST, SHARDS, STEMS, shard_paths
from .protocols import REFERENCE, UNLABELLED
from .raw import UNDECIDED

SPLITS = ("train", "eval", "all", "val")


def is_prepared(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and (folder / SHARDS).is_dir()


class PreparedSet(ImageSet):
    """A prepared benchmark.

    The train split has whole resized images, from which crops are cut. Every other split has the
    protocol's centre windows. "train" and "eval" are the partition that the manifest names, "all"
    has every image, "val" the images of val2017 (Potsdam: the held-out patches). The label map of
    an image without ground truth is 255 everywhere.

    Raises:
        DataError: the manifest, the index or a shard is damaged or of another version, or the split
            has no image.
    """

    in_process = True  # a second process would only copy the mapped memory
    has_labels = True

    def __init__(self, root: Path, split: str = "all") -> None:
        try:
            manifest = json.loads((root / MANIFEST).read_text())
            version = manifest["format"]
            if version == FORMAT:
                protocol, options = manifest["protocol"], manifest["options"]
                data = (root / INDEX_FILE).read_bytes()
                if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
                    raise ValueError(f"{INDEX_FILE} is not as it was written")
                index = np.load(io.BytesIO(data))
                stems = (root / STEMS).read_text().split("\n")[:-1]
                shards = [(record["image_bytes"], record["label_bytes"]) for record in manifest["shards"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"prepared set {root} is damaged ({error}); prepare it again") from error
        if version != FORMAT:
            raise DataError(f"prepared set {root} has format {version}, this version reads {FORMAT}; prepare it again")
        if index.dtype != INDEX or not len(index) == len(stems) == manifest["images"]:
            raise DataError(f"prepared set {root} is damaged (its index and its stems disagree); prepare it again")
        if split not in SPLITS:
            raise DataError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
        self._paths = [shard_paths(root / SHARDS, shard) for shard in range(len(shards))]
        for paths, sizes in zip(self._paths, shards, strict=True):
            for path, size in zip(paths, sizes, strict=True):
                if not path.is_file() or path.stat().st_size != size:
                    raise DataError(f"prepared set {root} is damaged ({path} is not whole); prepare it again")

        self.name, self.split, self.manifest = f"{protocol['name']} ({root})", split, manifest
        self.classes, self.num_classes = list(protocol["classes"]), len(protocol["classes"])
        self.channels, self.dtype, self.window = protocol["channels"], np.dtype(np.uint8), protocol["window"]
        self.crop_side, self.raw_scale = self.window, protocol["scale"]
        self.unlabelled_as = protocol["unlabelled_as"]
        self._iic = options.get("unlabelled") == "iic" and self.unlabelled_as is not None
        chosen = self._chosen(index, options["partition"])
        if not len(chosen):
            raise DataError(f"the {split} split of {root} has no image")
        self.stems = [stems[i] for i in chosen]
        self._index = index[chosen]
        # Plain numbers: reading a record of a structured array takes longer than copying a crop.
        self._places = [index[name][chosen].tolist() for name in ("shard", "offset", "rows", "columns")]
        self._whole = split == "train"
        rows, columns = self._index["rows"].astype(np.int64), self._index["columns"].astype(np.int64)
        if self._whole:
            self._top, self._left = np.zeros_like(rows), np.zeros_like(columns)
            self._rows, self._columns = rows, columns
        else:
            self._top, self._left = rows // 2 - self.window // 2, columns // 2 - self.window // 2
            self._rows, self._columns = np.full_like(rows, self.window), np.full_like(columns, self.window)
        self.sizes = list(zip(self._rows.tolist(), self._columns.tolist(), strict=True))
        self._table = np.arange(256, dtype=np.uint8)  # label of each stored label
        self._table[UNDECIDED] = self.unlabelled_as if self._iic else IGNORE
        self._maps = None

    def _chosen(self, index: np.ndarray, partition: str) -> np.ndarray:
        labelled, held_out = index["labelled"], index["held_out"]
        if self.split == "all":
            return np.arange(len(index))
        if self.split == "val":
            return np.flatnonzero(held_out)
        if partition == "iid":  # the same images in both, but those without labels only in train
            return np.arange(len(index)) if self.split == "train" else np.flatnonzero(labelled)
        return np.flatnonzero(~held_out if self.split == "train" else held_out)

    def __getstate__(self) -> dict:
        return vars(self) | {"_maps": None}  # a worker process maps the files itself

    def _mapped(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The bytes of the images and labels of each shard, as plain arrays, which are faster to
        slice than np.memmap.
        """
        if self._maps is None:
            self._maps = [
                tuple(np.memmap(path, np.uint8, "r").view(np.ndarray) for path in paths) for paths in self._paths
            ]
        return self._maps

    def _stored(self, index: int, labels: bool) -> np.ndarray:
        """A view of the stored image [channels, rows, columns], or its labels [1, rows, columns]."""
        shard, offset, rows, columns = (values[index] for values in self._places)
        channels = 1 if labels else self.channels
        start = offset * channels
        mapped = self._mapped()[shard][labels]
        return mapped[start : start + channels * rows * columns].reshape(channels, rows, columns)

    def _view(self, index: int, labels: bool) -> np.ndarray:
        top, left = int(self._top[index]), int(self._left[index])
        return self._stored(index, labels)[
            :, top : top + int(self._rows[index]), left : left + int(self._columns[index])
        ]

    def crops(
        self, indices: np.ndarray, y: np.ndarray, x: np.ndarray, side: int, labelled: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As ImageSet.crops, copied from the mapped files. The frame of a small image does not
        count.
        """
        rows, columns = self._rows[indices], self._columns[indices]
        if self.scale != 1 or min(rows.min(), columns.min()) < side:
            return super().crops(indices, y, x, side, labelled)
        top = self._top[indices] + (y * (rows - side + 1)).astype(np.int64)
        left = self._left[indices] + (x * (columns - side + 1)).astype(np.int64)
        batch = np.empty((len(indices), self.channels, side, side), dtype=np.uint8)
        for out, i, t, n in zip(batch, indices.tolist(), top.tolist(), left.tolist(), strict=True):
            out[:] = self._stored(i, False)[:, t : t + side, n : n + side]

        if labelled:  # the frame has no labels
            valid = np.empty((len(indices), side, side), dtype=bool)
            beyond = IGNORE if self._iic else UNDECIDED
            for ok, i, t, n in zip(valid, indices.tolist(), top.tolist(), left.tolist(), strict=True):
                np.less(self._stored(i, True)[0, t : t + side, n : n + side], beyond, out=ok)
            return batch, valid
        place = self._index[indices]
        above, left_of = np.maximum(place["top"] - top, 0), np.maximum(place["left"] - left, 0)
        below = np.minimum(place["top"] + place["inner_rows"] - top, side)
        right_of = np.minimum(place["left"] + place["inner_columns"] - left, side)
        outside = np.flatnonzero((above > 0) | (left_of > 0) | (below < side) | (right_of < side))
        if not len(outside):
            return batch, None
        valid = np.ones((len(indices), side, side), dtype=bool)
        for b in outside:
            valid[b, : above[b]] = valid[b, below[b] :] = False
            valid[b, :, : left_of[b]] = valid[b, :, right_of[b] :] = False
        return batch, valid

    def read(self, index: int) -> Pixels:
        return np.array(self._view(index, labels=False)), None

    def label(self, index: int) -> np.ndarray:
        return self._table[self._view(index, labels=True)[0]]

    def target(self, index: int) -> np.ndarray:
        """As `label`, with the value `num_classes` for the pixels that the option `unlabelled`
        decides about.
        """
        stored = self._view(index, labels=True)[0]
        if self.unlabelled_as is None:
            return self._table[stored]
        return np.where(stored == UNDECIDED, np.uint8(self.num_classes), stored)

    @property
    def num_targets(self) -> int:
        return self.num_classes + (self.unlabelled_as is not None)

    def folded(self, counts: np.ndarray, unlabelled: str | None = None) -> np.ndarray:
        """As ImageSet.folded, by the option "ignore" or "iic". None: the manifest's option."""
        kept = counts[:, : self.num_classes].copy()
        if (unlabelled or ("iic" if self._iic else "ignore")) == "iic" and self.unlabelled_as is not None:
            kept[:, self.unlabelled_as] += counts[:, self.num_classes]
        return kept

    def protocol(self, counts: np.ndarray) -> dict:
        """Images, partition, pixels and options of a score, and the accuracy with each choice of
        `unlabelled`.
        """
        manifest, place = self.manifest, self._index
        scored = int(place["labelled"].sum())
        pixels = int((self._rows * self._columns)[place["labelled"]].sum())
        counted = int(self.folded(counts).sum())
        lists = [f"{entry['part']}/{entry['name']}" for entry in manifest["protocol"]["lists"]]
        facts = {
            "name": manifest["protocol"]["name"],
            "split": self.split,
            "images": scored,
            "lists": lists or list(manifest["sources"]),
            "partition": manifest["options"]["partition"],
            "window": self.window,
            "scale": manifest["protocol"]["scale"],
            "ignored_share": 1 - counted / pixels if pixels else float("nan"),
            "options": manifest["options"],
            "selection": manifest["selection"],
            "notes": manifest["notes"],
        }
        if self.unlabelled_as is not None:
            facts["pixel_accuracy_by_unlabelled"] = {
                choice: match_clusters(self.folded(counts, choice)).accuracy for choice in UNLABELLED
            }
        return facts


def as_text(facts: dict, scores: dict) -> str:
    """The protocol as one line."""
    parts = [
        f"{facts['name']}, {facts['split']} split: {facts['images']:,} images of {', '.join(facts['lists'])}",
        f"partition {facts['partition']}"
        + (" (the images trained on are scored)" if facts["partition"] == "iid" else " (held out)"),
        f"centre {facts['window']} x {facts['window']} at scale {facts['scale']:g}",
        facts["selection"],
        *(facts["notes"] if facts["split"] == "val" or facts["partition"] != "iid" else []),
        f"unlabelled {facts['options']['unlabelled']}" if "unlabelled" in facts["options"] else "",
        f"{scores['num_pixels']:,} pixels counted, {facts['ignored_share']:.1%} ignored",
        f"class shares {' '.join(f'{share:.3f}' for share in scores['class_shares'])}",
        f"constant predictor {scores['majority_accuracy']:.4f}",
        *(f"{name.replace('_', ' ')} {facts[name]}" for name in ("loss_mask", "epoch_rule") if name in facts),
    ]
    by_choice = facts.get("pixel_accuracy_by_unlabelled")
    if by_choice and len(set(by_choice.values())) > 1:
        each = ", ".join(f"{choice} {value:.4f}" for choice, value in by_choice.items())
        parts.append(f"accuracy by --unlabelled: {each} (iic: {REFERENCE} scores unlabelled pixels as a class)")
    return f"protocol: {'; '.join(part for part in parts if part)}"
