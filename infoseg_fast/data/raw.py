"""Shared by the readers of raw downloads: the found files, and reading a file with errors that name
it.
"""

import importlib.util
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from .reader import first_line


@dataclass
class Raw:
    """The raw files of a benchmark, found but not read.

    Attributes:
        items: the arguments of the calls of a reader's `read`, which give the images in order.
        stems, parts, labelled: of each image: its name, its part of the download, and whether it
            has labels.
        held_out: of each image, whether the "iid+" partition keeps it for scoring.
        per_item: images of one item. per_shard: items of one shard.
        sources: files with their counts, hashes and addresses, for the manifest.
        selection: the rule that chose the images, if it is more than a list; printed with every
            result.
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
    """Raise DataError when a package of the extra `benchmarks` is not installed."""
    if importlib.util.find_spec(name) is None:
        raise DataError(f"this benchmark needs the package {name}: pip install 'infoseg-fast[benchmarks]'")


def require_folder(folder: Path, where: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; it is in {where}")


def files_in(folder: Path, ending: str) -> set[str]:
    """Stems of the folder's files of that ending (no subfolders)."""
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
    """The file's bytes, which also enter `digest`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from error
    digest.update(data)
    return data


def decoded(data: bytes, path: Path, what: str, modes: tuple[str, ...], as_mode: str | None, where: str) -> np.ndarray:
    """The pixels of an encoded image, converted to Pillow's mode `as_mode` (None: as they are)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in modes:
                raise DataError(f"{what} {path} has Pillow mode {image.mode}; {' or '.join(modes)} is accepted")
            return np.asarray(image if as_mode in (None, image.mode) else image.convert(as_mode))
    except DataError:
        raise
    except Exception as error:  # a truncated or damaged file; plugins differ in what they raise
        raise DataError(f"{what} {path} is damaged ({first_line(error)}); get it again from {where}") from error


def header(path: Path, what: str, where: str) -> tuple[int, int]:
    """(rows, columns) by the file's header."""
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
