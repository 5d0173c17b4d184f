"""Few large images for training: every part of a scene counts as an image, and crops are drawn from
the whole scene.
"""

import numpy as np

from .base import ImageSet, Pixels, scaled_size

FEW_IMAGES = 64
SCENE_PIXELS = 2**18  # mean size above which a few images are scenes
MIN_POINTS = 256  # where the scenes are large enough
STRIDES = (128, 64, 32, 16, 8)  # pixels between points, the largest that gives MIN_POINTS
PART_SIDE = 256  # pixels of `read`


def for_training(images: ImageSet) -> ImageSet:
    """The set itself, or its `SceneCrops` if it has one image or a few large ones."""
    area = float(np.mean([rows * columns for rows, columns in images.sizes]))
    few = len(images) < FEW_IMAGES and area >= SCENE_PIXELS
    return SceneCrops(images) if len(images) == 1 or few else images


class SceneCrops(ImageSet):
    """An image for each point of a grid over the scenes.

    `read` gives the part of PART_SIDE pixels around the point. `crops` places a crop so that the
    point, moved by at most half the grid's stride, is its centre: crops of any side cover the
    scenes evenly.
    """

    def __init__(self, source: ImageSet) -> None:
        for name in ("name", "channels", "dtype", "classes", "num_classes", "has_labels", "scale", "crop_side",
                     "raw_scale", "unlabelled_as", "in_process", "windowed", "_scaling"):  # fmt: skip
            setattr(self, name, getattr(source, name))
        self.source = source
        for self.stride in STRIDES:
            self._points = [
                (image, row, column)
                for image, size in enumerate(source.sizes)
                for row, column in np.ndindex(*(max(1, round(n / self.stride)) for n in size))
            ]
            if len(self._points) >= MIN_POINTS:
                break
        self._parts = [self._part_around(*point) for point in self._points]
        self.sizes = [(height, width) for _, _, height, width in self._parts]
        self.stems = [f"{source.stems[image]}@{row},{column}" for image, row, column in self._points]

    def over(self, source: ImageSet) -> "SceneCrops":
        """The same points over a source that holds the same images."""
        made = object.__new__(SceneCrops)
        vars(made).update(vars(self) | {"source": source, "in_process": source.in_process})
        return made

    def _part_around(self, image: int, row: int, column: int) -> tuple[int, int, int, int]:
        """(row, column, height, width) of the part around a point."""
        spans = []
        for point, n in zip((row, column), self.source.sizes[image], strict=True):
            length = min(PART_SIDE, n)
            middle = int((point + 0.5) * self.stride)
            spans.append((min(max(middle - length // 2, 0), n - length), length))
        (top, height), (left, width) = spans
        return top, left, height, width

    def read(self, index: int) -> Pixels:
        return self.source.read_window(self._points[index][0], *self._parts[index])

    def label(self, index: int) -> np.ndarray:
        top, left, height, width = self._parts[index]
        return self.source.label(self._points[index][0])[top : top + height, left : left + width]

    def corner(self, index: int, y: float, x: float, side: int) -> tuple[int, int]:
        image, *point = self._points[index]
        found = []
        for n, scaled, at, fraction in zip(
            self.source.sizes[image], self.source.size(image), point, (y, x), strict=True
        ):
            middle = (at + fraction) * self.stride * scaled / n
            found.append(min(max(round(middle - side / 2), 0), max(scaled - side, 0)))
        return found[0], found[1]

    def part(self, index: int, row: int, column: int, side: int) -> Pixels:
        return self.source.part(self._points[index][0], row, column, side)

    def label_part(self, index: int, row: int, column: int, height: int, width: int) -> np.ndarray:
        return self.source.label_part(self._points[index][0], row, column, height, width)

    def check_labels(self) -> None:
        self.source.check_labels()

    def fingerprint(self) -> dict:
        return self.source.fingerprint()

    @property
    def shortest_side(self) -> int:
        return min(min(scaled_size(size, self.scale)) for size in set(self.source.sizes))

    def num_smaller(self, side: int) -> int:
        return sum(min(self.source.size(image)) < side for image, _, _ in self._points)

    @property
    def num_bytes(self) -> int:
        return self.source.num_bytes
