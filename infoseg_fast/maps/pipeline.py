"""Threads that read ahead of a computation and write behind it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Ahead(Iterator[T]):
    """The items of an iterator, computed by a thread that is at most `size` items ahead. What the
    iterator raises is raised in its place.
    """

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items, self._made, self._stopped = items, queue.Queue[Any](size), False
        self._thread = threading.Thread(target=self._make, name="reader", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        last: Any = None  # an exception, or None at the end
        try:
            for item in self._items:
                self._made.put((item,))
                if self._stopped:
                    break
        except BaseException as error:
            last = error
        self._made.put(last)

    def __next__(self) -> T:
        made = self._made.get()
        if isinstance(made, tuple):
            return made[0]
        self._made.put(made)  # for a further call
        if made is None:
            raise StopIteration
        raise made

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped = True
        while self._thread.is_alive():  # the thread may wait for room
            with contextlib.suppress(queue.Empty):
                self._made.get(timeout=0.05)


class Behind:
    """Calls that one thread makes in order.

    `submit` waits while more than `size` calls wait, and raises what an earlier call raised. The
    end of the context waits for all calls, after an error too.
    """

    def __init__(self, size: int) -> None:
        self._size, self._pool = size, ThreadPoolExecutor(1)
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(function, *arguments))
        while len(self._waiting) > self._size:
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is None:
            while self._waiting:
                self._waiting.popleft().result()
        self._pool.shutdown()
