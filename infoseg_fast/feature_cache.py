"""`FeatureCache`: the maps of a frozen backbone on disk, so that they are computed once."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

logger = logging.getLogger("infoseg_fast")

MAX_BYTES = 4 * 2**30  # largest size of a cache; further maps are not kept
MIN_FREE_BYTES = 2**30  # space on the disk that a cache leaves free


def cache_root() -> Path:
    """The folder of all caches: $INFOSEG_CACHE, else infoseg-fast in the user's cache folder.

    Raises:
        DataError: INFOSEG_CACHE is not set, and the user has no home folder, as in a container.
    """
    if os.environ.get("INFOSEG_CACHE"):
        return Path(os.environ["INFOSEG_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infoseg-fast"
    except RuntimeError as error:
        raise DataError(
            "the user has no home folder for the cache of features; set INFOSEG_CACHE to a folder"
        ) from error


class FeatureCache:
    """Maps by the content of their image, float32, one file per image. A warning says if the folder
    cannot be written or is full: further maps are then not kept.

    Args:
        key: names the weights and the chosen maps.
        root: folder of all caches. None: `cache_root()`.
        limit: largest size of the folder of this key, bytes.
    """

    def __init__(self, key: str, root: Path | None = None, limit: int = MAX_BYTES) -> None:
        self.folder = (root or cache_root()) / "features" / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.limit = limit
        self._writable = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._bytes = sum(entry.stat().st_size for entry in os.scandir(self.folder))
        except OSError as error:
            self._bytes = 0
            self._stop(f"{self.folder} cannot be used: {error.strerror}")

    def maps(
        self, image: Tensor, shapes: Sequence[Sequence[int]], compute: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """The maps of an image with these shapes: read, or else computed and written."""
        pixels = image.contiguous().numpy()
        path = self.folder / hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        sizes = [int(np.prod(shape)) for shape in shapes]
        stored = self._read(path)
        if stored is None or stored.size != sum(sizes):
            found = [x.float().contiguous() for x in compute(image)]
            self._write(path, b"".join(x.numpy().tobytes() for x in found))
            return found
        return [part.view(*shape) for part, shape in zip(torch.from_numpy(stored).split(sizes), shapes, strict=True)]

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            return np.fromfile(path, dtype=np.float32)
        except OSError:  # no such file yet
            return None

    def _write(self, path: Path, data: bytes) -> None:
        if not self._writable:
            return
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            if self._bytes + len(data) > self.limit:
                self._stop(f"{self.folder} is full ({self.limit / 2**30:g} GiB)")
                return
            if shutil.disk_usage(self.folder).free < MIN_FREE_BYTES + len(data):
                self._stop(f"the disk of {self.folder} has less than {MIN_FREE_BYTES / 2**30:g} GiB left")
                return
            scratch.write_bytes(data)
            os.replace(scratch, path)
            self._bytes += len(data)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            self._stop(f"{path} could not be written: {error.strerror}")

    def _stop(self, reason: str) -> None:
        self._writable = False
        logger.warning("features of the frozen backbone are computed again and not kept: %s", reason)
