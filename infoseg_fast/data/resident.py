"""`ResidentSet`: a small set in the memory of a GPU, which cuts the crops itself."""

import numpy as np
import torch
from torch import Tensor

from .base import ImageSet, InMemory, nearest
from .crops import Crop
from .images import IGNORE


def fits(images: ImageSet, device: torch.device) -> bool:
    """Whether the set is in memory with 8-bit values and the device is not the CPU."""
    return device.type != "cpu" and isinstance(images, InMemory) and images.dtype == np.uint8


class ResidentSet:
    """The images of a set on a device, which cuts the crops.

    Args:
        images: a set for which `fits` is true. Images may have any sizes.
        crop: side of the crops, pixels.
        labelled: whether pixels without ground truth do not count (loss mask "gt").
        device: the device.
    """

    def __init__(self, images: ImageSet, crop: int, labelled: bool, device: torch.device) -> None:
        self.images, self.crop, self.channels = images, crop, images.channels
        pixels, masks, begins, count = [], [], [], 0
        whole = not labelled and not images.num_smaller(crop)
        for index in range(len(images)):
            found, valid = images.scaled(index)
            found = images.scaling.filled(found, valid)
            size = rows, columns = images.size(index)
            valid = np.ones(size, bool) if valid is None else valid
            if labelled:
                valid = valid & (nearest(images.label(index), size) != IGNORE)
            whole = whole and bool(valid.all())
            pixels.append(np.ascontiguousarray(found).reshape(-1))
            masks.append(valid.reshape(-1))
            begins.append((count, rows, columns))
            count += rows * columns
        self.pixels = torch.from_numpy(np.concatenate(pixels)).to(device)
        self.valid = None if whole else torch.from_numpy(np.concatenate(masks)).to(device)
        self.begins = torch.tensor(begins).T.contiguous().to(device)  # first pixel, rows, columns of each image
        self.side = torch.arange(crop, device=device)

    def places(self, crops: list[Crop]) -> Tensor:
        """The image, row and column of each crop, int64 [3, B] on the host."""
        corners = [(crop.index, *self.images.corner(crop.index, crop.y, crop.x, self.crop)) for crop in crops]
        return torch.tensor(corners).T.contiguous()

    def rows(self, places: Tensor) -> Tensor:
        """`ImageSet.place` of the crops at `places`, int64 [B, 2]."""
        return torch.stack([places[1], self.begins[1, places[0]]], dim=1)

    def cut(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """The crops at `places` on the device, as `ImageSet.crops` cuts them.

        Returns:
            The crops uint8 [B, c, crop, crop], and the pixels that count, bool [B, crop, crop].
            None: all pixels of the set count.
        """
        image, row, column = places
        first, rows, columns = self.begins[:, image][:, :, None]
        y, x = row[:, None] + self.side, column[:, None] + self.side
        inside = (y < rows)[:, :, None] & (x < columns)[:, None]
        at = torch.minimum(y, rows - 1)[:, :, None] * columns[:, :, None] + torch.minimum(x, columns - 1)[:, None]
        channel = torch.arange(self.channels, device=at.device)[:, None, None]
        area = (rows * columns)[:, :, None, None]
        pixels = self.pixels[first[:, :, None, None] * self.channels + channel * area + at[:, None]]
        return pixels, None if self.valid is None else self.valid[first[:, :, None] + at] & inside
