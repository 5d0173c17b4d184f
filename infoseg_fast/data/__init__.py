"""Sets of images: a folder of one's own, and the satellite images that two wheels bring."""

from pathlib import Path

from ..errors import DataError
from . import landcover
from .base import ImageSet
from .folder import SPLITS, FolderSet

NAMES = tuple(landcover.CLASSES)


def open_set(data: str, split: str, *, num_classes: int | None = None, scale: float = 1.0) -> ImageSet:
    """The set of that name, or the folder at that path.

    Args:
        data: a name of `NAMES`, or a folder with `images/` (see `FolderSet`). A name wins over a folder called so.
        split: "train", "eval" or "all".
        num_classes: number of label values of a folder without classes.txt.
        scale: factor by which images are resized when read.

    Raises:
        DataError: there is no such set, or something in it is not as it must be.
    """
    if split not in SPLITS:
        raise DataError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
    if data in NAMES:
        found = landcover.LandcoverSet(data, split)
    elif Path(data).is_dir():
        found = FolderSet(Path(data), split, num_classes)
    else:
        raise DataError(f"--data {data} is neither a folder nor one of {', '.join(NAMES)}")
    found.scale = scale
    return found


__all__ = ["NAMES", "SPLITS", "DataError", "FolderSet", "ImageSet", "open_set"]
