"""COCO-Stuff as downloaded: JPEG images, stuffthingmaps PNGs, and the curated lists of the
benchmark's images.

    ROOT/images/{train2017,val2017}/*.jpg
    ROOT/annotations/{train2017,val2017}/*.png
    ROOT/curated/{train2017,val2017}/<list>.txt

The lists are checked by their hash, since filtering the images does not give the three-class list.
"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import DataError
from .protocols import FINE_UNLABELLED, FINE_VALUES, WHERE, ImageList, Options, Protocol
from .raw import Raw, class_table, decoded, header, read_bytes, require_files, require_same_size
from .resize import linear, nearest, resized_side

PER_SHARD = 512  # images
IMAGE_MODES = ("RGB", "L", "CMYK", "YCbCr")  # Pillow's modes that are accepted


def find(protocol: Protocol, options: Options, root: Path) -> Raw:
    """The listed images with their labels.

    Raises:
        DataError: a file is missing, or a list is not the protocol's.
    """
    items, stems, parts, sources = [], [], [], {}
    for listed in protocol.lists:
        path = root / "curated" / listed.part / f"{listed.name}.txt"
        names = read_list(path, listed)
        images, labels = root / "images" / listed.part, root / "annotations" / listed.part
        require_files(images, names, ".jpg", "image", WHERE[listed.part])
        require_files(labels, names, ".png", "label", WHERE["stuffthingmaps"])
        items += [(images / f"{name}.jpg", labels / f"{name}.png", listed.part) for name in names]
        stems += [f"{listed.part}/{name}" for name in names]
        parts += [listed.part] * len(names)
        sources[f"curated/{listed.part}/{listed.name}.txt"] = {
            "images": len(names), "sha256": listed.sha256, "from": WHERE["curated"]
        }  # fmt: skip
        sources[f"images/{listed.part}"] = {"from": WHERE[listed.part]}
        sources[f"annotations/{listed.part}"] = {"from": WHERE["stuffthingmaps"]}
    held_out = [part == "val2017" for part in parts]
    return Raw(items, stems, parts, [True] * len(items), held_out, 1, PER_SHARD, sources)


def read_list(path: Path, listed: ImageList) -> list[str]:
    """The stems of a curated list, whose bytes must have the protocol's hash."""
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"image list {path} is missing; it is in {WHERE['curated']}") from None
    names = data.decode("ascii", "replace").split()
    found = hashlib.sha256(data).hexdigest()
    if found == listed.sha256:
        return names
    repeated = next((name for name, times in Counter(names).items() if times > 1), None)
    if repeated is not None:
        reason = f"it names {repeated} twice"
    elif len(names) != listed.count:
        reason = f"it names {len(names)} images, the protocol's {listed.count}"
    else:
        reason = f"its sha256 is {found}, the protocol's {listed.sha256}"
    raise DataError(f"image list {path} is not the protocol's: {reason}; get it from {WHERE['curated']}")


def measure(protocol: Protocol, item: tuple) -> tuple[int, int]:
    """(rows, columns) of the resized image, from the headers."""
    image, label, part = item
    size = header(image, "image", WHERE[part])
    require_same_size(size, header(label, "label", WHERE["stuffthingmaps"]), label)
    return tuple(resized_side(n, protocol.scale) for n in size)


def read(protocol: Protocol, options: Options, item: tuple, digest):
    """The resized image [3, rows, columns] and its label map, both uint8."""
    image, label, part = item
    fine = decoded(
        read_bytes(label, "label", digest), label, "label", ("L", "P"), None, WHERE["stuffthingmaps"]
    )  # of a palette PNG the indices are the values
    pixels = read_colour(image, part, digest)
    require_same_size(pixels.shape[:2], fine.shape, label)
    unknown = (fine >= FINE_VALUES) & (fine != FINE_UNLABELLED)
    if unknown.any():
        raise DataError(
            f"label {label} holds {fine[unknown][0]}; COCO-Stuff's values are 0 to {FINE_VALUES - 1} and "
            f"{FINE_UNLABELLED}. The stuffthingmaps have them: {WHERE['stuffthingmaps']}"
        )
    yield (linear(pixels, protocol.scale).transpose(2, 0, 1), class_table(protocol)[nearest(fine, protocol.scale)])


def read_colour(path: Path, part: str, digest) -> np.ndarray:
    """A JPEG decoded in full, [rows, columns, 3] RGB."""
    data = read_bytes(path, "image", digest)
    return decoded(data, path, "image", IMAGE_MODES, "RGB", WHERE[part])
