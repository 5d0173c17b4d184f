"""Image files as a set: a folder, a list of paths, or one file."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .files import FileSet
from .images import IGNORE
from .names import by_stem, image_files, read_lines, read_list, read_names, require_unique, stem_of
from .reader import ReadOptions

SPLITS = ("train", "eval", "all")


class FolderSet(FileSet):
    """The images of a folder, with their label maps if it has any.

    Args:
        root: the folder. `images/` has the images, in subfolders too, or the image files lie
            directly in `root`. `labels/` has one map of integers per image stem (255 = ignore).
            `train.txt` and `eval.txt` list the stems of the splits; without a list a split has every
            image. `classes.txt` names the label values.
        split: "train", "eval" or "all".
        num_classes, options: as in `FileSet`.

    Raises:
        DataError: the layout or a list is not as above, or see `FileSet`. Label values are checked
            when they are read.
    """

    def __init__(
        self, root: Path, split: str = "all", num_classes: int | None = None, options: ReadOptions | None = None
    ) -> None:
        folder = root / "images"
        if not folder.is_dir():
            if (root / "labels").exists() or not any(path.parent == root for path in image_files(root)):
                raise DataError(f"data folder {root} has no images/ folder")
            folder = root
        images = by_stem(folder, image_files(folder))
        if not images:
            raise DataError(f"{folder} holds no file in a format that can be read")
        listed = root / f"{split}.txt"
        stems = read_list(listed, images) if split != "all" and os.path.lexists(listed) else list(images)
        labels = labels_of(root, images) if folder != root else {}
        missing = [stem for stem in stems if stem not in labels]
        if missing and (split == "eval" if labels else (root / "labels").is_dir()):
            todo = "list the labelled stems in eval.txt" if labels else "remove the folder or fill it"
            raise DataError(
                f"{root / 'labels'} has no label for {missing[0]} ({len(missing)} of {len(stems)} images lack one); "
                f"{todo}"
            )
        files = [(stem, images[stem], labels.get(stem)) for stem in stems]
        self._other_labels = [labels[stem] for stem in labels.keys() - set(stems)]
        self.folder = folder
        super().__init__(str(root), files, num_classes, class_names(root / "classes.txt"), options)


def labels_of(root: Path, images: dict[str, Path]) -> dict[str, Path]:
    """The label maps of `root`/labels by stem. Empty: there is no such folder.

    Raises:
        DataError: a label map has no image.
    """
    folder = root / "labels"
    if not folder.is_dir():
        return {}
    labels = by_stem(folder, image_files(folder), "labels")
    unmatched = sorted(labels.keys() - images.keys())
    if unmatched:
        raise DataError(f"label {labels[unmatched[0]]} has no image of its stem ({len(unmatched)} such labels)")
    return labels


def class_names(path: Path) -> list[str] | None:
    """The names of the label values, one a line. None: there is no such file.

    Raises:
        DataError: the file cannot be read, or the number of names is not accepted.
    """
    if not os.path.lexists(path):
        return None
    names = read_names(path)
    if not 1 <= len(names) <= IGNORE:
        raise DataError(f"{path} names {len(names)} classes; 1 to {IGNORE} are accepted")
    return names


def open_file(path: Path, num_classes: int | None, options: ReadOptions) -> FileSet:
    """One image file as a set. Its label map and classes.txt are found as those of a folder."""
    classes = class_names(folder_of(path) / "classes.txt")
    return FileSet(str(path), [(path.stem, path, labels_beside([path])[0])], num_classes, classes, options)


def open_list(path: Path, num_classes: int | None, options: ReadOptions) -> FileSet:
    """The images whose paths a text file lists, one a line, relative to the file's folder.

    Raises:
        DataError: the list is empty, or names a file twice or one that does not exist.
    """
    lines = read_lines(path)
    require_unique(path, lines)
    images = [path.parent / line for line in lines]
    for line, image in zip(lines, images, strict=True):
        if not image.is_file():
            raise DataError(f"list {path} names {line!r}, which is no file")
    first: dict[str, str] = {}
    for line, image in zip(lines, images, strict=True):
        other = first.setdefault(os.path.realpath(image), line)
        if other is not line:
            raise DataError(f"list {path} names one file twice: {other!r} and {line!r} are {os.path.realpath(image)}")
    common = Path(os.path.commonpath([image.absolute().parent for image in images]))
    stems = by_stem(common, [image.absolute() for image in images])
    folders = {folder_of(image) for image in images}
    classes = class_names(folders.pop() / "classes.txt") if len(folders) == 1 else None
    labels = labels_beside(images)
    return FileSet(str(path), list(zip(stems, images, labels, strict=True)), num_classes, classes, options)


def folder_of(image: Path) -> Path:
    """The data folder of an image file: the parent of the images/ folder that the file lies in, else
    the file's own folder.
    """
    return next((folder.parent for folder in image.absolute().parents if folder.name == "images"), image.parent)


def labels_beside(images: Sequence[Path]) -> list[Path | None]:
    """The label map DATA/labels/STEM of each image DATA/images/STEM, or None."""
    below: dict[Path, dict[str, Path]] = {}
    found: list[Path | None] = []
    for image in map(Path.absolute, images):
        root = folder_of(image)
        if root not in below:
            folder = root / "labels"
            below[root] = by_stem(folder, image_files(folder), "labels") if folder.is_dir() else {}
        inside = image.is_relative_to(root / "images")
        found.append(below[root].get(stem_of(image, root / "images")) if inside else None)
    return found
