"""Sets of images: the user's files, a prepared benchmark, or the satellite images of two wheels."""

from pathlib import Path

from ..errors import DataError
from . import landcover
from .base import ImageSet
from .folder import SPLITS, FolderSet, open_file, open_list
from .prepared import PreparedSet, is_prepared
from .reader import ReadOptions
from .scenes import for_training
from .shards import ShardSet, is_shards

NAMES = tuple(landcover.CLASSES)


def open_set(
    data: str, split: str, *, num_classes: int | None = None, scale: float = 1.0, options: ReadOptions | None = None
) -> ImageSet:
    """The set of a name, or the images at a path.

    Args:
        data: a name of `NAMES`, a folder with images (see `FolderSet`), a folder that `infoseg
            prepare` made (see `PreparedSet`), shards (see `ShardSet`), an image file, or a text
            file (.txt) that lists paths of images. A name takes precedence over a folder.
        split: "train", "eval" or "all"; "val" too for a prepared benchmark. A file, a list and
            shards have the same images in every split.
        num_classes: number of label values. None: that of classes.txt, else the largest label + 1.
        scale: factor by which images are resized when they are read.
        options: how image files are read. None: the defaults.

    Raises:
        DataError: there is no such set or split, or a file of it is not accepted.
    """
    if not data:
        raise DataError("--data is empty: give the name of a set, a folder, an image or a list of images")
    path, options = Path(data), options or ReadOptions()
    prepared = data not in NAMES and is_prepared(path)
    if split not in SPLITS and not prepared:
        raise DataError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
    if (data in NAMES or prepared) and options != ReadOptions():
        raise DataError(
            f"--bands, --nodata, --alpha, --pages and --max-bytes are for image files; leave them out for {data}"
        )
    found: ImageSet
    if data in NAMES:
        found = landcover.LandcoverSet(data, split)
    elif prepared:
        found = PreparedSet(path, split)
    elif is_shards(data):
        found = ShardSet(data, num_classes, options)
    elif path.is_dir():
        found = FolderSet(path, split, num_classes, options)
    elif path.is_file():
        found = (open_list if path.suffix.lower() == ".txt" else open_file)(path, num_classes, options)
    else:
        raise DataError(f"--data {data} is neither a folder nor a file nor one of {', '.join(NAMES)}")
    found.scale = scale
    return found


__all__ = ["NAMES", "FolderSet", "ImageSet", "ReadOptions", "for_training", "open_set"]
