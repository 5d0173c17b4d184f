"""Writes images and their labels as a folder for `--data DIR`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(
    root: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]], train: int, classes: Sequence[str]
) -> Path:
    """Write pairs of an image, uint8 [H, W] or [H, W, 3], and its labels, uint8 [H, W]; returns
    `root`.

    The first `train` pairs are the train split, the others the eval split.
    """
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i, (image, label) in enumerate(pairs):
        Image.fromarray(image).save(root / "images" / f"{i:04}.png")
        Image.fromarray(label).save(root / "labels" / f"{i:04}.png")
    stems = [f"{i:04}\n" for i in range(len(pairs))]
    (root / "train.txt").write_text("".join(stems[:train]))
    (root / "eval.txt").write_text("".join(stems[train:]))
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root
