"""Training on few large images: every part of a scene counts as an image, and crops come from the
whole scene.

Decoding the blocks of a tiled file takes far longer than copying a crop out of them. So the crops
of a scene that is not in memory are drawn region by region: some regions stay decoded, and each
batch comes from all of them.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from .base import ImageSet, Pixels, cut, scaled_size
from .regions import Regions

FEW_IMAGES = 64  # number below which large images are scenes
SCENE_PIXELS = 2**18  # mean size from which few images are scenes
MIN_POINTS = 256  # number of points that the stride is chosen for
STRIDES = (128, 64, 32, 16, 8)  # pixels between points: the largest stride that gives MIN_POINTS
PART_SIDE = 256  # pixels, side of the part that `read` gives
REGION_BYTES = 256 * 2**20  # decoded bytes of all regions that are kept
REGION_SIDES = (8, 4, 2)  # points of a region each way: the most of which MIN_REGIONS regions are kept
MIN_REGIONS = 10
VISITS = 4  # crops around each point while its region is kept


def for_training(images: ImageSet) -> ImageSet:
    """The set itself, or its `SceneCrops` if it has one image or few large ones."""
    area = float(np.mean([rows * columns for rows, columns in images.sizes]))
    few = len(images) < FEW_IMAGES and area >= SCENE_PIXELS
    return SceneCrops(images) if len(images) == 1 or few else images


class SceneCrops(ImageSet):
    """A set with an image for each point of a grid over the scenes.

    `read` gives the part of PART_SIDE pixels around the point. The centre of a crop is at most half
    the grid's stride from the point, so that crops of any side cover the scenes evenly.
    """

    _spread = False

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
        self._find_regions()
        if source.windowed:
            self._leave_out_empty_regions()
        self._parts = [self._part_around(*point) for point in self._points]
        self.sizes = [(height, width) for _, _, height, width in self._parts]
        self.stems = [f"{source.stems[image]}@{row},{column}" for image, row, column in self._points]

    def _find_regions(self) -> None:
        """Set the region of each point, (image, row, column) on a grid of `_points_across` points,
        and the number of regions that are kept.
        """
        for self._points_across in REGION_SIDES:
            side = (self._points_across + 1) * self.stride
            self._kept = REGION_BYTES // (side**2 * self.channels * self.dtype.itemsize)
            if self._kept >= MIN_REGIONS:
                break
        self._kept = max(self._kept, 1)
        n = self._points_across
        self._region_of = [(image, row // n, column // n) for image, row, column in self._points]
        self._regions = Regions(REGION_BYTES)

    def _leave_out_empty_regions(self) -> None:
        """Drop the points of regions without data at 3 x 3 pixels. Whole batches could be without
        data around a scene that is rotated on its grid.
        """
        full = {region for region in dict.fromkeys(self._region_of) if self._has_data(*region)}
        kept = [(p, r) for p, r in zip(self._points, self._region_of, strict=True) if r in full]
        if kept:
            self._points, self._region_of = map(list, zip(*kept, strict=True))

    def _has_data(self, image: int, row: int, column: int) -> bool:
        if not self.source.may_lack_data(image):
            return True
        length = self._points_across * self.stride
        spans = [(n * length, min((n + 1) * length, size) - 1) for n, size in
                 zip((row, column), self.source.sizes[image], strict=True)]  # fmt: skip
        for y, x in np.ndindex(3, 3):
            at = [first + max(last - first, 0) * i // 2 for (first, last), i in zip(spans, (y, x), strict=True)]
            valid = self.source.read_window(image, at[0], at[1], 1, 1)[1]
            if valid is None or valid.all():
                return True
        return False

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray | None:
        """The order of the points in an epoch. Few regions are in use at any time.

        The regions are permuted on a circle of places. Each point of the region at place k is drawn
        VISITS times, at random places from k to k + `_kept`. VISITS epochs are a pass over the
        circle, so that all points are drawn equally often.
        """
        if not self.windowed or self._spread:
            return None
        rng = np.random.default_rng((seed, epoch // VISITS, VISITS))
        regions = sorted(set(self._region_of))
        place = dict(zip(regions, rng.permutation(len(regions)).tolist(), strict=True))
        places = np.tile([place[region] for region in self._region_of], VISITS)
        kept = max(1, min(self._kept - 1, len(regions)))  # one more is in memory while the next is read
        order = np.argsort((places + kept * rng.random(len(places))) % len(regions)) % len(self)
        return order[epoch % VISITS * len(self) :][: len(self)]

    def over(self, source: ImageSet) -> "SceneCrops":
        """The same points over another set with the same images."""
        return self._changed(source=source, in_process=source.in_process, windowed=source.windowed)

    def spread(self) -> "SceneCrops":
        return self._changed(_spread=True)

    def _changed(self, **attributes: object) -> "SceneCrops":
        made = object.__new__(type(self))  # the class may be one that skips damaged images (data.damaged)
        vars(made).update(vars(self) | attributes)
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

    def place(self, index: int, y: float, x: float, side: int) -> tuple[int, int]:
        return self.corner(index, y, x, side)[0], self.source.size(self._points[index][0])[0]

    def part(self, index: int, row: int, column: int, side: int, window: Callable[..., Pixels] | None = None) -> Pixels:
        if window is None and self.windowed and not self._spread:
            window = partial(self._from_region, self._region_of[index], side)
        return self.source.part(self._points[index][0], row, column, side, window)

    def _from_region(
        self, region: tuple[int, int, int], side: int, image: int, row: int, column: int, height: int, width: int
    ) -> Pixels:
        """`read_window`, from a decoded region for crops of `side` pixels around its points."""
        margin = math.ceil(side / self.scale / 2) + 2
        length = self._points_across * self.stride
        spans = []
        for n, number in zip(self.source.sizes[image], region[1:], strict=True):
            first, stop = number * length - margin, (number + 1) * length + margin
            # Crops at the border of the image are moved into it.
            spans.append((max(0, min(first, n - 2 * margin)), min(n, max(stop, 2 * margin))))
        (top, bottom), (left, right) = spans
        if row < top or column < left or row + height > bottom or column + width > right:
            return self.source.read_window(image, row, column, height, width)
        kept = self._regions.get(
            (*region, side), lambda: self.source.read_window(image, top, left, bottom - top, right - left)
        )
        return cut(kept, slice(row - top, row - top + height), slice(column - left, column - left + width))

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
