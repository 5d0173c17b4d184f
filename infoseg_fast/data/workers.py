"""Worker processes of `infoseg prepare`."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

from tqdm import tqdm

from ..errors import DataError

CHUNK = 256  # items of one task of `Pool.over_items`


class Pool:
    """Runs functions over tasks in worker processes, or in this process if `workers` is 1."""

    def __init__(self, workers: int, progress: bool) -> None:
        self.workers, self.bar_disabled = workers, None if progress else True
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Pool":
        if self.workers > 1:
            # Not forked, because this process may have threads (of torch, of a progress bar).
            context = get_context("spawn")
            self.executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin_worker)
        return self

    def __exit__(self, *_) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def run(self, function: Callable, tasks: list[tuple[int, tuple]]) -> Iterator[tuple[int, dict]]:
        """(number, result) of each task (number, arguments), in the order in which they finish."""
        if self.executor is None:
            yield from ((number, function(*arguments)) for number, arguments in tasks)
            return
        futures = {self.executor.submit(function, *arguments): number for number, arguments in tasks}
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise DataError(
                    f"one of {self.workers} worker processes was killed (out of memory?); run the command again with "
                    "fewer --workers, it continues there"
                ) from error
            yield futures[future], result

    def over_items(self, function: Callable, arguments: tuple, items: list, description: str) -> list:
        """The concatenated results of function(*arguments, chunk), in order."""
        chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
        results = {}
        with tqdm(total=len(items), unit="file", desc=description, disable=self.bar_disabled) as bar:
            for number, result in self.run(function, [(n, (*arguments, chunk)) for n, chunk in enumerate(chunks)]):
                results[number] = result
                bar.update(len(chunks[number]))
        return [value for number in range(len(chunks)) for value in results[number]]


def _begin_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
