"""`ImageSet`: what training, evaluation and prediction ask of a set of images, wherever its pixels are."""

import numpy as np
import torch
import torch.nn.functional as F

from .images import WHITE


class ImageSet:
    """Images with stems, and labels where there are any.

    A subclass fills the attributes and implements `native_image` and `label`.

    Attributes:
        name: for messages. stems: one for each image. sizes: (rows, columns) of each image, before scaling.
        channels, dtype: of all images. classes: names of the label values, or None where they have none.
        num_classes: number of label values; None where it is not known from the set's description.
        has_labels: whether `label` answers for every image.
        scale: factor by which `image` shrinks or enlarges; labels keep their size.
    """

    name: str
    stems: list[str]
    sizes: list[tuple[int, int]]
    channels: int
    dtype: np.dtype
    classes: list[str] | None
    num_classes: int | None
    has_labels: bool
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.stems)

    def native_image(self, index: int) -> np.ndarray:
        """Pixels at native size: [channels, rows, columns] of `dtype`."""
        raise NotImplementedError

    def label(self, index: int) -> np.ndarray:
        """Ground truth at native size: [rows, columns] uint8 below num_classes, 255 where there is none."""
        raise NotImplementedError

    def check_labels(self) -> None:
        """Raise DataError for a label map that is not as `label` promises."""

    def image(self, index: int) -> np.ndarray:
        """Pixels at the set's scale: [channels, rows, columns] of `dtype`."""
        return rescale(self.native_image(index), self.scale)

    def size(self, index: int) -> tuple[int, int]:
        """(rows, columns) of `image(index)`."""
        return scaled_size(self.sizes[index], self.scale)

    @property
    def shortest_side(self) -> int:
        return min(min(scaled_size(size, self.scale)) for size in set(self.sizes))

    @property
    def num_bytes(self) -> int:
        """Of all images together at the set's scale."""
        pixels = sum(rows * columns for rows, columns in map(self.size, range(len(self))))
        return pixels * self.channels * self.dtype.itemsize


class InMemory(ImageSet):
    """A set whose scaled images are held in memory; what else is asked comes from the set it was made of."""

    def __init__(self, source: ImageSet, images: list[np.ndarray]) -> None:
        vars(self).update(vars(source))
        self._source, self._images = source, images
        self.native_image, self.label = source.native_image, source.label

    def image(self, index: int) -> np.ndarray:
        return self._images[index]


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return size if scale == 1 else tuple(max(1, round(n * scale)) for n in size)


def rescale(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Resize [c, rows, columns] by a factor, bilinear, with antialiasing when it shrinks."""
    if scale == 1:
        return pixels
    size = scaled_size(pixels.shape[1:], scale)
    resized = F.interpolate(
        torch.from_numpy(pixels.astype(np.float32))[None], size=size, mode="bilinear", antialias=True
    )[0].numpy()
    if pixels.dtype.kind == "f":
        return resized
    return resized.round().clip(0, WHITE[pixels.dtype]).astype(pixels.dtype)


def to_float(pixels: np.ndarray) -> torch.Tensor:
    """Pixels of any accepted dtype -> float32 tensor in [0, 1].

    By numpy, since reading threads call it: a second thread that wakes torch's pool would contend with the network.
    """
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(WHITE[pixels.dtype]))
