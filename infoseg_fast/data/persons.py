"""COCO-Persons from COCO's annotations: the selection of images, and their masks of persons.

    ROOT/images/{train2017,val2017}/*.jpg
    ROOT/annotations/instances_{train2017,val2017}.json

No public text says how the InfoSeg paper chose and cut its images. This module takes images with a
person outside crowds, with no side below `min_side`, and with a share of persons in the scored
window within a range. The manifest records these rules.
"""

import json
from collections import defaultdict
from operator import index
from os import fspath
from pathlib import Path

import numpy as np

from ..errors import DataError
from .coco import PER_SHARD, read_colour
from .images import IGNORE
from .protocols import WHERE, Options, Protocol
from .raw import Raw, header, require_files, require_package
from .resize import linear, nearest, resized_side

PARTS = ("train2017", "val2017")
PERSON = 1  # category_id
BACKGROUND_LABEL, PERSON_LABEL = 0, 1


def find(protocol: Protocol, options: Options, root: Path) -> Raw:
    """The candidate images. `prepare` selects among them by `person_share`."""
    require_package("pycocotools")
    items, stems, parts, sources = [], [], [], {}
    for part in PARTS:
        path = root / "annotations" / f"instances_{part}.json"
        images, persons = _annotations(path)
        names = []
        for entry in sorted(images.values(), key=lambda entry: entry["file_name"]):
            found = persons.get(entry["id"], [])
            if min(entry["height"], entry["width"]) < options.min_side or all(crowd for _, crowd in found):
                continue
            names.append(entry["file_name"].removesuffix(".jpg"))
            items.append((root / "images" / part / entry["file_name"], part, (entry["height"], entry["width"]), found))
        require_files(root / "images" / part, names, ".jpg", "image", WHERE[part])
        stems += [f"{part}/{name}" for name in names]
        parts += [part] * len(names)
        sources[f"annotations/{path.name}"] = {"images": len(images), "from": WHERE["instances"]}
        sources[f"images/{part}"] = {"from": WHERE[part]}
    held_out = [part == "val2017" for part in parts]
    return Raw(items, stems, parts, [True] * len(items), held_out, 1, PER_SHARD, sources)


def _annotations(path: Path) -> tuple[dict[int, dict], dict[int, list]]:
    """The images by id, and for each image id the (segmentation, iscrowd) of its persons."""
    try:
        content = json.loads(path.read_bytes())
        images, persons = {}, defaultdict(list)
        for entry in content["images"]:
            if entry["id"] in images:
                raise DataError(f"{path} has the image id {entry['id']} twice; get it again from {WHERE['instances']}")
            images[entry["id"]] = {
                "id": entry["id"], "file_name": fspath(entry["file_name"]),
                "height": index(entry["height"]), "width": index(entry["width"]),
            }  # fmt: skip
        for entry in content["annotations"]:
            if entry["category_id"] == PERSON:
                if entry["image_id"] not in images:
                    raise DataError(f"{path} annotates image {entry['image_id']}, which it does not list")
                persons[entry["image_id"]].append((entry["segmentation"], bool(entry["iscrowd"])))
    except OSError:
        raise DataError(f"{path} is missing; it is in {WHERE['instances']}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is damaged or no COCO instances file ({error!r}); get it again from {WHERE['instances']}"
        ) from error
    return images, persons


def measure(protocol: Protocol, item: tuple) -> tuple[int, int]:
    path, part, size, _ = item
    found = header(path, "image", WHERE[part])
    if found != size:
        raise DataError(
            f"image {path} is {found[1]} x {found[0]} pixels, by its annotations {size[1]} x {size[0]}; get it again "
            f"from {WHERE[part]}"
        )
    return tuple(resized_side(n, protocol.scale) for n in size)


def label_of(protocol: Protocol, options: Options, item: tuple) -> np.ndarray:
    """The resized label map: 1 on persons, 0 elsewhere. The option `crowd` decides about crowds. A
    person overrides a crowd.
    """
    path, _, (rows, columns), persons = item
    label = np.full((rows, columns), BACKGROUND_LABEL, dtype=np.uint8)
    for segmentation, crowd in sorted(persons, key=lambda person: not person[1]):
        label[mask_of(segmentation, rows, columns, path)] = (
            IGNORE if crowd and options.crowd == "ignore" else PERSON_LABEL
        )
    return nearest(label, protocol.scale)


def mask_of(segmentation: list | dict, rows: int, columns: int, path: Path) -> np.ndarray:
    """The mask bool [rows, columns] of polygons, or of a run-length encoding with numbers or text
    as counts.
    """
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            encoded = mask.merge(mask.frPyObjects(segmentation, rows, columns))
        elif isinstance(segmentation["counts"], list):
            encoded = mask.frPyObjects(segmentation, rows, columns)
        else:
            encoded = segmentation
        decoded = mask.decode(encoded).astype(bool)
    except Exception as error:  # pycocotools raises many kinds
        raise DataError(f"an annotation of {path.name} cannot be read ({error!r})") from error
    if decoded.shape != (rows, columns):
        raise DataError(f"an annotation of {path.name} is for {decoded.shape} pixels, the image has {rows, columns}")
    return decoded


def person_share(protocol: Protocol, options: Options, item: tuple) -> float:
    """The share of persons among the labelled pixels of the scored window."""
    label = label_of(protocol, options, item)
    top, left = (max(0, n // 2 - protocol.window // 2) for n in label.shape)
    window = label[top : top + protocol.window, left : left + protocol.window]
    counted = int((window != IGNORE).sum())
    return int((window == PERSON_LABEL).sum()) / counted if counted else 0.0


def read(protocol: Protocol, options: Options, item: tuple, digest):
    path, part, size, _ = item
    pixels = read_colour(path, part, digest)
    if pixels.shape[:2] != size:
        raise DataError(f"image {path} decodes to {pixels.shape[:2]} pixels, by its annotations {size}")
    digest.update(json.dumps(item[3]).encode())
    yield linear(pixels, protocol.scale).transpose(2, 0, 1), label_of(protocol, options, item)
