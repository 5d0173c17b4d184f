"""Processes of tests. They are forks of a server without threads: a fork of the test's own process,
in which PyTorch has threads, can wait for a lock for ever.
"""

import multiprocessing
import pickle
import tempfile
import time
from pathlib import Path

from torch.multiprocessing import start_processes

SECONDS = 480  # limit of the processes of a test; to compile takes minutes on a slow machine
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["infoseg_fast", "torch.distributed"])


def _call(rank: int, function, number: int, folder: str, arguments: tuple) -> None:
    found = function(rank, number, *arguments)
    Path(folder, str(rank)).write_bytes(pickle.dumps(found))


def each_rank(function, number: int, *arguments) -> list:
    """What function(rank, number, *arguments) returns in each of `number` processes, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        handed = (function, number, folder, arguments)
        started = start_processes(_call, handed, nprocs=number, join=False, start_method="forkserver")
        end = time.monotonic() + SECONDS
        try:
            while not started.join(timeout=1):
                assert time.monotonic() < end, f"the processes did not finish within {SECONDS} s"
        finally:
            for process in started.processes:
                process.kill()
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(number)]
