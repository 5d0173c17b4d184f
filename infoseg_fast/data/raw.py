"""What the readers of raw downloads share: the found files, reading with errors that name the file,
and the stored label values.
"""

import importlib.util
import io
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError, first_line
from .images import IGNORE
from .protocols import FINE_UNLABELLED, Protocol

# Stored label of a pixel without ground truth to which the protocol's published code gives a class.
# The option `unlabelled` decides when labels are read, so that both scores can be computed.
UNDECIDED = 254


@lru_cache(maxsize=8)
def class_table(protocol: Protocol) -> np.ndarray:
    """The stored label of each raw label value, uint8 [256]."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    for label, members in enumerate(protocol.values):
        table[list(members)] = label
    if protocol.unlabelled_as is not None:
        table[FINE_UNLABELLED] = UNDECIDED
    return table


@dataclass
class Raw:
    """The raw files of a benchmark, found but not read.

    Attributes:
        items: arguments of the reader's `read`, in the order of the images.
        stems: name of each image.
        parts: part of the download that each image belongs to.
        labelled: whether each image has labels.
        held_out: whether the "iid+" partition keeps each image for scoring.
        per_item: number of images of an item.
        per_shard: number of items of a shard.
        sources: files with their counts, hashes and addresses, for the manifest.
        selection: the rule that chose the images, printed with every result. Empty: a list did.
        notes: lines for the manifest.
    """

    items: list[Any]
    stems: list[str]
    parts: list[str]
    labelled: list[bool]
    held_out: list[bool]
    per_item: int
    per_shard: int
    sources: dict
    selection: str = ""
    notes: list[str] = field(default_factory=list)


def require_package(name: str) -> None:
    """Raise DataError if a package of the extra `benchmarks` is not installed."""
    if importlib.util.find_spec(name) is None:
        raise DataError(f"this benchmark needs the package {name}: pip install 'infoseg-fast[benchmarks]'")


def require_folder(folder: Path, where: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; it is in {where}")


def files_in(folder: Path, ending: str) -> set[str]:
    """Stems of the folder's files with this ending, without subfolders."""
    with os.scandir(folder) as entries:
        return {entry.name[: -len(ending)] for entry in entries if entry.name.endswith(ending) and entry.name[0] != "."}


def require_files(folder: Path, stems: list[str], ending: str, what: str, where: str) -> None:
    """Raise DataError for stems that have no file in the folder."""
    require_folder(folder, where)
    present = files_in(folder, ending)
    missing = [stem for stem in stems if stem not in present]
    if missing:
        raise DataError(
            f"{what} {folder / missing[0]}{ending} is missing ({len(missing)} of {len(stems)} such); it is in {where}"
        )


def read_bytes(path: Path, what: str, digest) -> bytes:
    """The bytes of a file. `digest` is updated with them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from error
    digest.update(data)
    return data


def decoded(data: bytes, path: Path, what: str, modes: tuple[str, ...], as_mode: str | None, where: str) -> np.ndarray:
    """The pixels of an encoded image in Pillow's mode `as_mode`. None: its own mode, one of
    `modes`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in modes:
                raise DataError(f"{what} {path} has Pillow mode {image.mode}; {' or '.join(modes)} is accepted")
            return np.asarray(image if as_mode in (None, image.mode) else image.convert(as_mode))
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on a damaged file
        raise DataError(f"{what} {path} is damaged ({first_line(error)}); get it again from {where}") from error


def header(path: Path, what: str, where: str) -> tuple[int, int]:
    """(rows, columns) from the header of a file."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"{what} {path} is missing; it is in {where}") from None
    except Exception as error:
        raise DataError(f"{what} {path} is damaged ({first_line(error)}); get it again from {where}") from error


def require_same_size(image: tuple[int, int], label: tuple[int, int], label_path: Path) -> None:
    if image != label:
        raise DataError(
            f"label {label_path} is {label[1]} x {label[0]} pixels, its image {image[1]} x {image[0]}; they must agree"
        )
