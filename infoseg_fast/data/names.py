"""Image files of a folder, the stems that images and labels share, and text files with lists."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from .images import image_endings


def image_files(root: Path) -> list[Path]:
    """All files below `root` with the ending of an image, in any case, sorted.

    Hidden files and folders are ignored. Links to folders are followed unless they lead back to a
    folder above. Broken links are included: reading them fails.

    Raises:
        DataError: a folder cannot be read.
    """
    endings, found = image_endings(), []
    waiting = [(root, frozenset([_identity(root)]))]
    while waiting:
        folder, above = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
        for entry in listed:
            path = folder / entry.name
            if _is_folder(entry):
                identity = _identity(path)
                if identity not in above:
                    waiting.append((path, above | {identity}))
            elif path.suffix.lower() in endings:
                found.append(path)
    return sorted(found)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        stat = folder.stat()
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    return stat.st_dev, stat.st_ino


def stem_of(path: Path, root: Path) -> str:
    """The path relative to `root` without its ending, with forward slashes. An image and its label
    share it.
    """
    return path.relative_to(root).with_suffix("").as_posix()


def by_stem(root: Path, files: Iterable[Path], what: str = "images") -> dict[str, Path]:
    """The files by their stems.

    Raises:
        DataError: two files have the same stem.
    """
    found: dict[str, Path] = {}
    for path in files:
        other = found.setdefault(stem_of(path, root), path)
        if other is not path:
            raise DataError(f"{what} {other} and {path} have one stem; each needs its own")
    return found


def read_lines(path: Path, keep_empty: bool = False) -> list[str]:
    """The stripped lines of a UTF-8 text file, with or without byte-order mark. Empty lines are left
    out unless `keep_empty`.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _no_text(path, data, error.start) from None
    if "\0" in text:  # UTF-16 or UTF-32
        raise _no_text(path, data, data.index(0))
    # Not str.splitlines, which also splits at characters that a file name may contain.
    return [line.strip() for line in text.split("\n") if keep_empty or line.strip()]


def _no_text(path: Path, data: bytes, at: int) -> DataError:
    line = data.count(b"\n", 0, at) + 1
    return DataError(f"{path} is not UTF-8 text: byte 0x{data[at]:02x} at offset {at} (line {line})")


def read_names(path: Path) -> list[str]:
    """The lines of a text file, each the name of the label with the number of the line, from 0.

    Raises:
        DataError: see `read_lines`, or a line before the last name is empty.
    """
    names = read_lines(path, keep_empty=True)
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(f"{path} names no label {names.index('')}: its line {names.index('') + 1} is empty")
    return names


def read_list(path: Path, known: Iterable[str]) -> list[str]:
    """The stems that the list of a split has, in its order.

    Raises:
        DataError: see `read_lines`, or the list is empty, or names a stem twice or an unknown one.
    """
    stems, known = read_lines(path), set(known)
    unknown = [stem for stem in stems if stem not in known]
    if unknown:
        raise DataError(f"list {path} names {unknown[0]!r}, which has no image ({len(unknown)} such stems)")
    require_unique(path, stems)
    return stems


def require_unique(path: Path, lines: list[str]) -> None:
    """Raise DataError if a list is empty or has a line twice."""
    if not lines:
        raise DataError(f"list {path} is empty")
    if len(set(lines)) != len(lines):
        twice = next(line for i, line in enumerate(lines) if line in lines[:i])
        raise DataError(f"list {path} names {twice!r} twice")
