"""`infoseg prepare landcover`: write a landcover set as a folder in the layout of `--data DIR`."""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .landcover import LandcoverSet


def export_landcover(name: str, out: Path) -> int:
    """Write the tiles of a landcover set to `out`; the number of images.

    The eval split has the eval tiles, the train split the other tiles of the grid, because a
    folder's images do not overlap. The folder gets its name when it is complete.
    """
    if out.exists():
        raise DataError(f"--out {out} exists; choose another folder")
    tiles, held_out = LandcoverSet(name, "all"), set(LandcoverSet(name, "eval").stems)
    scratch = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in ("images", "labels"):
            (scratch / folder).mkdir(parents=True)
        for index, stem in enumerate(tiles.stems):
            pixels = np.ascontiguousarray(tiles.native_image(index).transpose(1, 2, 0))
            Image.fromarray(pixels).save(scratch / "images" / f"{stem}.png")
            Image.fromarray(tiles.label(index)).save(scratch / "labels" / f"{stem}.png")
        lists = {
            "classes": tiles.classes,
            "eval": [stem for stem in tiles.stems if stem in held_out],
            "train": [stem for stem in tiles.stems if stem not in held_out],
        }
        for list_name, lines in lists.items():
            (scratch / f"{list_name}.txt").write_text("\n".join(lines) + "\n")
        os.rename(scratch, out)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from error
    return len(tiles)
