"""`Regions`: parts of large images that stay in memory while crops are cut out of them."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from .base import Pixels


class Regions:
    """A cache of pixels by key, up to `limit` bytes. The least recently used pixels leave it first.
    Several threads may use it. A region is read once.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._found: OrderedDict[tuple, Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, read: Callable[[], Pixels]) -> Pixels:
        """The pixels of a key, from `read` if they are not kept."""
        with self._lock:
            region = self._found.get(key)
            if region is not None:
                self._found.move_to_end(key)
            else:
                mine = self._found[key] = Future()
        if region is not None:
            return region.result()
        try:
            pixels = read()
        except BaseException as error:
            with self._lock:
                del self._found[key]
            mine.set_exception(error)
            raise
        mine.set_result(pixels)
        with self._lock:
            self._bytes += _size(pixels)
            for old in list(self._found):
                if self._bytes <= self._limit:
                    break
                if old != key and self._found[old].done():
                    self._bytes -= _size(self._found.pop(old).result())
        return pixels


def _size(pixels: Pixels) -> int:
    values, valid = pixels
    return values.nbytes + (0 if valid is None else valid.nbytes)
