"""Batches that threads read ahead, in the order of the sampler."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

BATCHES_AHEAD = 2  # for each thread
Given = TypeVar("Given")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Given], Read], given: Iterable[Given], threads: int) -> Iterator[Read]:
    """The results of `read` for all that is given, in order.

    Unlike worker processes, threads share decoded parts. The decoders release the interpreter's
    lock.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Read]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(read, one))
            if len(waiting) > BATCHES_AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
