"""The output folder of a command: its lock, and how it is made whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError


class FolderLock:
    """A lock of the output folder, so that two calls do not write the same files.

    Args:
        out: the output folder, for messages.
        command: the command that writes it, for messages.
        folder: the folder that is locked, in which `out` is prepared. None: `out`. `take` makes it.
            The end of the context releases it, and removes a folder that `take` made if nothing was
            written to it.
    """

    def __init__(self, out: Path, command: str, folder: Path | None = None) -> None:
        self.out, self.command, self.folder = out, command, folder or out
        self._handle: int | None = None
        self._new = False

    def take(self) -> None:
        """Hold the folder until the end of the context. Further calls do nothing.

        Raises:
            DataError: another call holds the folder, or it cannot be made.
        """
        if self._handle is not None:
            return
        try:
            self._new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"--out {self.out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._new = False  # the folder is that of the other call
            raise DataError(f"--out {self.out} is in use: another infoseg {self.command} writes to it") from error
        except OSError:  # a file system without locks
            pass

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
        if self._new:
            with contextlib.suppress(OSError):  # it holds files
                self.folder.rmdir()


def require_new(out: Path) -> None:
    """Raise DataError if there is anything at the path, be it a link to nothing."""
    if os.path.lexists(out):
        raise DataError(f"--out {out} exists; choose another folder")


def clear(folder: Path) -> None:
    """Remove the content of a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def new_folder(out: Path, command: str) -> Iterator[Path]:
    """A context with an empty folder, which gets the name `out` at its end. An error removes it.

    Raises:
        DataError: `out` exists or cannot be written, or another call makes it.
    """
    require_new(out)
    scratch = out.with_name(f".{out.name}.new")
    with FolderLock(out, command, scratch) as lock:
        lock.take()
        require_new(out)  # the call that held the lock before may have made it
        try:
            clear(scratch)  # what a killed call left
            yield scratch
            os.rename(scratch, out)
        except BaseException as error:  # an interruption too
            shutil.rmtree(scratch, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from error
