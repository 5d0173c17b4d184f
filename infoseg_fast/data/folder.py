"""A folder of images, with labels where there are any, as a set."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from .base import ImageSet
from .images import IGNORE, label_size, read_header, read_image, read_label, to_channels, to_dtype

SPLITS = ("train", "eval", "all")


def image_files(root: Path) -> list[Path]:
    """Every file below `root` whose ending Pillow reads, sorted; hidden files and folders are passed over."""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in endings
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def stem_of(path: Path, root: Path) -> str:
    """The path below `root` without its ending, with forward slashes: the name an image and its label share."""
    return path.relative_to(root).with_suffix("").as_posix()


def by_stem(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        other = found.setdefault(stem_of(path, root), path)
        if other is not path:
            raise DataError(f"images {other} and {path} have one stem; each image needs its own")
    return found


def read_list(path: Path, known: dict[str, Path]) -> list[str]:
    """The stems of a split list, in its order."""
    try:
        stems = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {path} cannot be read: {error}") from error
    unknown = [stem for stem in stems if stem not in known]
    if unknown:
        raise DataError(f"list {path} names {unknown[0]!r}, which has no image ({len(unknown)} such stems)")
    if len(set(stems)) != len(stems):
        raise DataError(f"list {path} names {next(s for s in stems if stems.count(s) > 1)!r} twice")
    if not stems:
        raise DataError(f"list {path} is empty")
    return stems


def largest_label(values: np.ndarray) -> int:
    return int(values.max(initial=0, where=values != IGNORE))


class FolderSet(ImageSet):
    """`root`/images (any format Pillow reads, subfolders kept), and when there is ground truth `root`/labels.

    Args:
        root: the folder. `labels/` holds one 8-bit PNG per image stem (255 = ignore); `train.txt` and `eval.txt` list
            the stems of the splits (without them every image is in both); `classes.txt` names the label values.
        split: "train", "eval" or "all".
        num_classes: number of label values; None takes the lines of classes.txt, else the largest label + 1.

    Raises:
        DataError: the layout, a header or a list is not as above. Label values are checked as they are read.
    """

    def __init__(self, root: Path, split: str = "all", num_classes: int | None = None) -> None:
        folder = root / "images"
        if not folder.is_dir():
            raise DataError(f"data folder {root} has no images/ folder")
        images = by_stem(folder, image_files(folder))
        if not images:
            raise DataError(f"{folder} holds no file in a format that Pillow reads")
        self.name, self.split = str(root), split
        listed = root / f"{split}.txt"
        self.stems = read_list(listed, images) if listed.is_file() else list(images)
        self._paths = [images[stem] for stem in self.stems]

        with ThreadPoolExecutor() as pool:
            headers = list(pool.map(read_header, self._paths))
        self.sizes = [(header.rows, header.columns) for header in headers]
        self.dtype = max((header.dtype for header in headers), key=lambda dtype: dtype.itemsize)
        self.channels = max(header.channels for header in headers)
        for path, header in zip(self._paths, headers, strict=True):
            if header.channels not in (1, self.channels):
                raise DataError(
                    f"image {path} has {header.channels} channels, others of {folder} have {self.channels}; "
                    "only grey images may be mixed with others"
                )
        self._find_labels(root, images)
        self.classes = self._class_names(root / "classes.txt")
        self.num_classes = num_classes if self.classes is None else len(self.classes)
        if self.num_classes is None and self._all_labels:
            self.num_classes = 1 + self._largest_label()

    def _find_labels(self, root: Path, images: dict[str, Path]) -> None:
        folder = root / "labels"
        self.has_labels, self._labels, self._all_labels = False, [], []
        if not folder.is_dir():
            return
        labels = {stem_of(path, folder): path for path in sorted(folder.rglob("*.png")) if path.name[0] != "."}
        unmatched = sorted(labels.keys() - images.keys())
        if unmatched:
            raise DataError(f"label {labels[unmatched[0]]} has no image of its stem ({len(unmatched)} such labels)")
        self._all_labels = list(labels.values())
        missing = [stem for stem in self.stems if stem not in labels]
        if missing:
            if self.split == "eval" or not labels:
                listed = "list the labelled stems in eval.txt" if labels else "remove the folder or fill it"
                raise DataError(
                    f"{folder} has no {missing[0]}.png ({len(missing)} of {len(self)} images lack a label); {listed}"
                )
            return
        self._labels = [labels[stem] for stem in self.stems]
        for path, size, image in zip(self._labels, map(label_size, self._labels), self.sizes, strict=True):
            if size != image:
                raise DataError(
                    f"label {path} is {size[1]} x {size[0]} pixels, its image {image[1]} x {image[0]}; they must agree"
                )
        self.has_labels = True

    def _class_names(self, path: Path) -> list[str] | None:
        if not path.is_file():
            return None
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not 1 <= len(names) <= IGNORE:
            raise DataError(f"{path} names {len(names)} classes; 1 to {IGNORE} are accepted")
        return names

    def _largest_label(self) -> int:
        with ThreadPoolExecutor() as pool:
            return max(largest_label(values) for values in pool.map(read_label, self._all_labels))

    def check_labels(self) -> None:
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self.label, range(len(self))):
                pass

    def native_image(self, index: int) -> np.ndarray:
        return to_channels(to_dtype(read_image(self._paths[index]), self.dtype), self.channels)

    def label(self, index: int) -> np.ndarray:
        values = read_label(self._labels[index])
        if self.num_classes is not None:
            largest = largest_label(values)
            if largest >= self.num_classes:
                raise DataError(
                    f"label {self._labels[index]} holds {largest}; values below {self.num_classes} "
                    f"(the number of classes) and {IGNORE} (ignore) are accepted"
                )
        return values

    def image_path(self, index: int) -> Path:
        return self._paths[index]
