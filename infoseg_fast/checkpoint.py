"""Checkpoints that are whole at every moment: the last, the one before, and the one of lowest training loss."""

import contextlib
import io
import logging
import os
from pathlib import Path

import torch

from .errors import DataError

logger = logging.getLogger("infoseg_fast")

LAST, PREVIOUS, BEST_LOSS = "last", "previous", "best_loss"
CHECKPOINTS = (LAST, BEST_LOSS)  # what a user may ask for


def path_of(run: Path, name: str) -> Path:
    return run / "checkpoints" / f"{name}.pt"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that under its name there is the old content or the new, never a part, even after a power cut."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise DataError(f"{path} could not be written: {error.strerror}; what was there before is unchanged") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(run: Path, state: dict, is_best: bool) -> None:
    """Make `state` the last checkpoint, what was last the previous one, and with `is_best` also the best."""
    path_of(run, LAST).parent.mkdir(exist_ok=True)
    # Serialised in memory first, so that a full disk is met by write_atomically, which leaves no part behind.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    if path_of(run, LAST).is_file():
        _link(path_of(run, LAST), path_of(run, PREVIOUS))
    write_atomically(path_of(run, LAST), buffer.getvalue())
    if is_best:
        _link(path_of(run, LAST), path_of(run, BEST_LOSS))


def _link(source: Path, target: Path) -> None:
    """Give the file `source` a second name, replacing what `target` was in one step."""
    scratch = target.with_name(f".{target.name}.link")
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:  # a file system without hard links
        write_atomically(target, source.read_bytes())
        return
    os.replace(scratch, target)


def load(run: Path, name: str = LAST) -> dict | None:
    """The state of a checkpoint, on the CPU; None when the run has none yet.

    A last checkpoint that is damaged is passed over for the one before, and that is said.
    """
    if not path_of(run, name).is_file():
        return None
    try:
        return _read(path_of(run, name))
    except DataError as error:
        previous = path_of(run, PREVIOUS)
        if name != LAST or not previous.is_file():
            raise
        state = _read(previous)
        logger.warning("%s; using the one before, of step %d", error, state["step"])
        return state


def _read(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage as RuntimeError, EOFError, UnpicklingError and others
        raise DataError(f"checkpoint {path} is damaged ({str(error).splitlines()[0]})") from error
