"""`Sample`: the fixed training crops for the choice of partitions and the fit of densities."""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..model import padded, position_mask, position_size
from ..ops.appearance_statistics import appearance_statistics
from .description import colours_and_position, description, with_position_noise

SAMPLE_CROPS = 256  # rounded up to whole batches

CropBatch = tuple[Tensor, Tensor | None]


class Sample:
    """Batches of crops without augmentation. They are read once, at the first use.

    Args:
        read: yields the batches: images, float [B, c, crop, crop] in [0, 1], and the pixels that
            count, bool [B, crop, crop], or None.
        position: whether the last channel of the images is the position of their pixels.
    """

    def __init__(self, read: Callable[[], Iterator[CropBatch]], position: bool = False) -> None:
        self._read, self.position = read, position
        self._statistics: dict[int, list[Tensor]] = {}

    def to(self, device: torch.device) -> "Sample":
        """The same crops on a device."""
        return Sample(
            lambda: ((images.to(device), None if mask is None else mask.to(device)) for images, mask in self._read()),
            self.position,
        )

    @cached_property
    def batches(self) -> list[CropBatch]:
        """The padded images, and the positions that count, bool [B, h, w], or None."""
        return [(padded(images), position_mask(mask, images)) for images, mask in self._read()]

    def statistics(self, smooth: int) -> list[Tensor]:
        """`appearance_statistics` of each batch, scaled over the whole sample. Computed once."""
        if smooth not in self._statistics:
            seen = []
            for images, _ in self.batches:
                colours, position = colours_and_position(images, self.position)
                seen.append(description(colours, position, position_size(images)))
            masks = [mask for _, mask in self.batches]
            whole = None
            if any(mask is not None for mask in masks):
                everywhere = [torch.ones_like(x[:, 0], dtype=torch.bool) for x in seen]
                whole = torch.cat([a if mask is None else mask for mask, a in zip(masks, everywhere, strict=True)])
            found = appearance_statistics(torch.cat(seen), whole, smooth)
            if self.position:
                found = with_position_noise(found, 1)
            self._statistics[smooth] = list(found.split([len(x) for x in seen]))
        return self._statistics[smooth]
