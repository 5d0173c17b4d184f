"""Signals that end a command after it has saved its work.

Slurm and other schedulers send SIGTERM or SIGUSR1 some time before they kill. Ctrl-C sends SIGINT.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """A signal ended the command. Not an Exception, so that no handler of errors catches it.

    Args:
        number: number of the signal.
        done: end of the message: when, or what was saved.

    Attributes:
        status: exit status of the command: 130 after SIGINT, else 143.
    """

    def __init__(self, number: int, done: str = "") -> None:
        super().__init__(f"ended by {signal.Signals(number).name} {done}".strip())
        self.status = 130 if number == signal.SIGINT else 143


class StopSignals:
    """A context in which the signals of STOPPING end a command.

    Before a call of `defer`, a signal raises `Stopped` at once. Afterwards the first signal only
    sets `received`, and the next one raises. Outside the main thread the context does nothing,
    since Python delivers signals to the main thread only.

    Args:
        done: argument of the `Stopped` that a signal raises before a call of `defer`.

    Attributes:
        received: number of the signal that arrived. 0: none.
    """

    def __init__(self, done: str = "") -> None:
        self._done = done
        self.received, self._deferred, self._process = 0, False, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Let the next signal set `received`."""
        self._deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that reads images: the run ends it
            return
        if not self._deferred:
            raise Stopped(number, self._done)
        if self.received:
            raise Stopped(number, "at once, as the second signal")
        self.received = number


def ignore_in_worker(worker: int) -> None:
    """Initialise a process that reads images. A signal to the process group ends the run, and the
    run ends this process.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
