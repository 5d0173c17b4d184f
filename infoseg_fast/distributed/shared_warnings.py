"""The log of several ranks: only the main rank prints, and it prints the warnings of all."""

from __future__ import annotations

import logging

import torch.distributed as dist

logger = logging.getLogger("infoseg_fast")


class SharedWarnings(logging.Filter):
    """A context in which the logger of the package prints on the main rank alone. The other ranks
    keep their warnings until `share`.

    Args:
        is_main: whether this is the main rank, number 0.
    """

    def __init__(self, is_main: bool) -> None:
        super().__init__()
        self.is_main = is_main
        self._printed: set[str] = set()  # on the main rank
        self._of_others: set[str] = set()  # of those, the warnings of other ranks
        self._kept: list[str] = []  # on another rank

    def __enter__(self) -> SharedWarnings:
        logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this rank prints the record."""
        text = record.getMessage()
        if self.is_main:
            self._printed.add(text)
            return text not in self._of_others
        if record.levelno == logging.WARNING:
            self._kept.append(text)
        return record.levelno > logging.WARNING

    def share(self) -> None:
        """Print the warnings of the other ranks that were not printed yet, on the main rank. Every
        rank must call it.
        """
        kept, self._kept = self._kept, []
        found: list = [None] * dist.get_world_size()
        dist.all_gather_object(found, kept)
        for rank, texts in enumerate(found if self.is_main else ()):
            for text in texts:
                if text not in self._printed:
                    logger.warning("rank %d: %s", rank, text)
                    self._printed.add(text)
                    self._of_others.add(text)
