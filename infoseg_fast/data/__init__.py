"""Sets of images: a folder of one's own, a prepared benchmark, and the satellite images that two wheels bring."""

from pathlib import Path

from ..errors import DataError
from . import landcover
from .base import ImageSet
from .folder import SPLITS, FolderSet
from .prepared import PreparedSet, is_prepared

NAMES = tuple(landcover.CLASSES)


def open_set(data: str, split: str, *, num_classes: int | None = None, scale: float = 1.0) -> ImageSet:
    """The set of that name, or the folder at that path.

    Args:
        data: a name of `NAMES`, a folder with `images/` (see `FolderSet`), or one that `infoseg prepare` made (see
            `PreparedSet`). A name wins over a folder called so.
        split: "train", "eval" or "all"; of a prepared benchmark also "val".
        num_classes: number of label values of a folder without classes.txt.
        scale: factor by which images are resized when read.

    Raises:
        DataError: there is no such set, or something in it is not as it must be.
    """
    prepared = data not in NAMES and is_prepared(Path(data))
    if split not in SPLITS and not prepared:
        raise DataError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
    if data in NAMES:
        found = landcover.LandcoverSet(data, split)
    elif prepared:
        found = PreparedSet(Path(data), split)
    elif Path(data).is_dir():
        found = FolderSet(Path(data), split, num_classes)
    else:
        raise DataError(f"--data {data} is neither a folder nor one of {', '.join(NAMES)}")
    found.scale = scale
    return found


__all__ = ["NAMES", "SPLITS", "DataError", "FolderSet", "ImageSet", "PreparedSet", "open_set"]
