"""`--skip-damaged`: sets that replace or leave out an image that cannot be read."""

import functools
import logging
from collections.abc import Callable

import numpy as np

from ..errors import DataError
from .base import ImageSet, Pixels
from .images import IGNORE

logger = logging.getLogger("infoseg_fast")


class _Skipping(ImageSet):
    """A mixin for training sets: the next readable image replaces one that cannot be read."""

    damaged: dict[int, str]

    def read(self, index: int) -> Pixels:
        return self._readable(super().read, index)

    def scaled(self, index: int) -> Pixels:
        return self._readable(super().scaled, index)

    def crops(self, indices, y, x, side, labelled=False):
        try:
            return super().crops(indices, y, x, side, labelled)
        except DataError:  # it occurs again below, where the image is known
            pass
        cut = [
            self._readable(lambda i, b=b: super(_Skipping, self).crops([i], y[b : b + 1], x[b : b + 1], side, labelled),
                           index)
            for b, index in enumerate(indices)
        ]  # fmt: skip
        images = np.concatenate([pixels for pixels, _ in cut])
        valid = np.concatenate([np.ones((1, side, side), bool) if mask is None else mask for _, mask in cut])
        return images, None if valid.all() else valid

    def _readable(self, read, index):
        """The result of `read` for the image, or for the next one that can be read."""
        for place in range(len(self)):
            one = (int(index) + place) % len(self)
            try:
                return read(one)
            except DataError as error:
                self.damaged.setdefault(one, str(error))
                failure = error
        raise failure


class _Unscored(ImageSet):
    """A mixin for sets that are scored: no pixel of an image that cannot be read counts."""

    damaged: dict[int, str]

    def read(self, index: int) -> Pixels:
        read = super().read
        return self._or_nothing(index, self.sizes[index], lambda: read(index))

    def read_window(self, index: int, row: int, column: int, height: int, width: int) -> Pixels:
        read = super().read_window
        return self._or_nothing(index, (height, width), lambda: read(index, row, column, height, width))

    def _or_nothing(self, index: int, size: tuple[int, int], read: Callable[[], Pixels]) -> Pixels:
        """The result of `read`, or pixels without data."""
        try:
            return read()
        except DataError as error:
            if index not in self.damaged:
                self.damaged[index] = str(error)
                logger.warning("left out of the scores: %s", error)
            return np.zeros((self.channels, *size), self.dtype), np.zeros(size, bool)

    def target(self, index: int) -> np.ndarray:
        self.read(index)
        if index in self.damaged:
            return np.full(self.sizes[index], IGNORE, np.uint8)
        return super().target(index)


def skip_damaged(images: ImageSet, scored: bool = False) -> ImageSet:
    """Make a set tolerate images that cannot be read. Returns the set itself.

    Args:
        images: the set. Its new attribute `damaged` has the error of each such image by its index,
            and `named` the errors that training has logged.
        scored: whether the set is for evaluation, which leaves a damaged image out of the scores.
            In training the next readable image replaces it, so that batches keep their size and
            steps their random numbers.
    """
    vars(images).update(damaged={}, named=set())
    images.__class__ = _mixed(_Unscored if scored else _Skipping, type(images))
    return images


@functools.cache
def _mixed(mixin: type, kind: type) -> type:
    """The class of sets of `kind` that tolerate such images. Worker processes that are not forked
    make it again.
    """

    def reduced(self):
        state = getattr(self, "__getstate__", None)  # every object has one from Python 3.11 on
        return _empty, (mixin, kind), state() if state else vars(self)

    return type(kind.__name__, (mixin, kind), {"__reduce__": reduced})


def _empty(mixin: type, kind: type) -> ImageSet:
    """A set without attributes, as `pickle` needs it."""
    return object.__new__(_mixed(mixin, kind))
