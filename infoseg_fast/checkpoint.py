"""Atomic writing of files, and the three checkpoints of a run."""

import contextlib
import io
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import DataError, first_line

logger = logging.getLogger("infoseg_fast")

LAST, PREVIOUS, BEST_LOSS = "last", "previous", "best_loss"
CHECKPOINTS = (LAST, BEST_LOSS)  # names that a user may give


def check_target(option: str, path: Path, ending: str = "") -> None:
    """Make the folder of a file. Raise DataError unless the file can be written."""
    if ending and path.suffix.lower() != ending:
        raise DataError(f"{option} {path}: the name must end in {ending}")
    if path.is_dir():
        raise DataError(f"{option} {path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():  # a device or a pipe, which the file would replace
        raise DataError(f"{option} {path} is no regular file; give the name of a file")
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise DataError(f"{option} {path} cannot be written: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it always has the old content or the new one, even after a power cut.

    Raises:
        DataError: the file cannot be written. The old content is unchanged.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException as error:  # an interruption too
        with contextlib.suppress(OSError):
            scratch.unlink()
        if not isinstance(error, OSError):
            raise
        raise DataError(f"{path} could not be written: {error.strerror}; what was there before is unchanged") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(folder: Path, state: dict[str, Any], is_best: bool) -> None:
    """Write `state` as the last checkpoint of the folder, with `is_best` as the best one too. The
    former last checkpoint becomes the previous one.

    Raises:
        DataError: the disk is full, the folder cannot be written, or `state` holds objects that
            `load` would refuse. The former checkpoints are unchanged.
    """
    last = _path(folder, LAST)
    # Serialised in memory, so that only write_atomically meets a full disk. It leaves no part
    # behind.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, map_location="meta", weights_only=True)  # without the values of tensors
    except pickle.UnpicklingError as error:  # a recipe of the user's may have any state
        found = re.search(r"(?:GLOBAL|type:) (\S+)", str(error))
        raise DataError(
            f"a checkpoint takes tensors, numbers, text, lists and dicts alone, but {found[1] if found else error} is "
            "in Recipe.state, or in the state or the arguments of the Labelling"
        ) from error
    try:
        folder.mkdir(exist_ok=True)
        if last.is_file():
            _link(last, _path(folder, PREVIOUS))
        write_atomically(last, buffer.getvalue())
        if is_best:
            _link(last, _path(folder, BEST_LOSS))
    except OSError as error:
        raise DataError(f"checkpoints in {folder} could not be written: {error.strerror}") from error


def load(folder: Path, name: str, repair: bool = False) -> dict[str, Any] | None:
    """The state of a checkpoint, on the CPU. None: there is no checkpoint yet.

    If the last checkpoint is damaged or missing, the previous one is loaded with a warning.

    Args:
        repair: whether the previous checkpoint also replaces the file of the last one.
            Otherwise the next `save` would make the damaged file the previous checkpoint.

    Raises:
        DataError: the checkpoint is damaged, and the previous one is damaged or missing.
    """
    path, previous = _path(folder, name), _path(folder, PREVIOUS)
    if not path.is_file() and not (name == LAST and previous.is_file()):
        return None
    try:
        return _read(path)
    except DataError as error:
        if name != LAST or not previous.is_file():
            raise
        state = _read(previous)
        logger.warning("%s; using the one before, of step %d", error, state["step"])
        if repair:
            _link(previous, path)
        return state


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.pt"


def _link(source: Path, target: Path) -> None:
    """Give the file `source` a second name. It replaces `target` in one step."""
    scratch = target.with_name(f".{target.name}.link")
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:  # a file system without hard links
        write_atomically(target, source.read_bytes())
        return
    os.replace(scratch, target)


def _read(path: Path) -> dict[str, Any]:
    try:
        # The file is a zip archive that holds a CRC-32 of each record. torch.load does not compare
        # it, and would return flipped bits as weights.
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                raise DataError(f"record {record} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage comes as BadZipFile, OSError, RuntimeError, UnpicklingError and others
        raise DataError(f"checkpoint {path} is damaged ({first_line(error)})") from error
