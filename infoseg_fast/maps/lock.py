"""The lock of the output folder of `infoseg predict`."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from ..errors import DataError


class FolderLock:
    """A lock of the output folder, so that two calls do not write the same files.

    Args:
        out: the folder. `take` makes it. The end of the context releases it, and removes a folder
            that `take` made if nothing was written to it.
    """

    def __init__(self, out: Path) -> None:
        self.out, self._handle, self._new = out, None, False

    def take(self) -> None:
        """Hold the folder until the end of the context. Further calls do nothing.

        Raises:
            DataError: another call holds the folder, or it cannot be made.
        """
        if self._handle is not None:
            return
        try:
            self._new = not self.out.exists()
            self.out.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.out, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"--out {self.out} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"--out {self.out} is in use: another infoseg predict writes to it") from error
        except OSError:  # a file system without locks
            pass

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
        if self._new:
            with contextlib.suppress(OSError):  # it holds files
                self.out.rmdir()
