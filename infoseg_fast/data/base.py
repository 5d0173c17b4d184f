"""`ImageSet`: what training, evaluation and prediction ask of a set of images, wherever its pixels are."""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F

from .images import IGNORE, WHITE


class ImageSet:
    """Images with stems, and labels where there are any.

    A subclass fills the attributes and implements `native_image` and `label`.

    Attributes:
        name: for messages. stems: one for each image. sizes: (rows, columns) of each image, before scaling.
        channels, dtype: of all images. classes: names of the label values, or None where they have none.
        num_classes: number of label values; None where it is not known from the set's description.
        has_labels: whether `label` answers for every image.
        scale: factor by which `image` shrinks or enlarges; labels keep their size.
        crop_side: side of the training crops that the set's protocol has, if any.
        in_process: whether crops are cheap enough to be cut in the training process itself.
        raw_scale: factor by which the images were resized when the set was made.
        unlabelled_as: class that a published protocol gives to pixels without ground truth, see `target`.
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
    crop_side: int | None = None
    in_process: bool = False
    raw_scale: float = 1.0
    unlabelled_as: int | None = None

    def __len__(self) -> int:
        return len(self.stems)

    def native_image(self, index: int) -> np.ndarray:
        """Pixels at native size: [channels, rows, columns] of `dtype`."""
        raise NotImplementedError

    def label(self, index: int) -> np.ndarray:
        """Ground truth at native size: [rows, columns] uint8 below num_classes, 255 where there is none."""
        raise NotImplementedError

    def target(self, index: int) -> np.ndarray:
        """What is counted against: `label`, or with one value more where a protocol leaves open what some pixels are.

        Values are below `num_targets` or 255; `folded` makes counts of classes of the counts of them.
        """
        return self.label(index)

    @property
    def num_targets(self) -> int:
        return self.num_classes

    def folded(self, counts: np.ndarray, unlabelled: str | None = None) -> np.ndarray:
        """Counts [clusters, num_targets] -> [clusters, num_classes]."""
        return counts

    def protocol(self, counts: np.ndarray) -> dict:
        """What must be told beside scores of counts [clusters, num_targets]; empty for a set of one's own."""
        return {}

    def check_labels(self) -> None:
        """Raise DataError for a label map that is not as `label` promises."""

    def fingerprint(self) -> dict:
        """What tells this set from another: a digest of its stems and sizes."""
        return {"sha256": hashlib.sha256(repr((self.stems, self.sizes)).encode()).hexdigest()}

    def image(self, index: int) -> np.ndarray:
        """Pixels at the set's scale: [channels, rows, columns] of `dtype`."""
        return rescale(self.native_image(index), self.scale)

    def size(self, index: int) -> tuple[int, int]:
        """(rows, columns) of `image(index)`."""
        return scaled_size(self.sizes[index], self.scale)

    def crops(
        self, indices: np.ndarray, y: np.ndarray, x: np.ndarray, side: int, labelled: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Cut a square out of each image at the set's scale; images smaller than that are padded by their edge.

        Args:
            indices: [B] of images. y, x: [B] in [0, 1): the corners, as fractions of the free rows and columns.
            side: of the squares, pixels.
            labelled: count pixels without ground truth as not valid.

        Returns:
            images [B, channels, side, side] of the set's dtype; valid bool [B, side, side], or None when all is.
        """
        batch = np.empty((len(indices), self.channels, side, side), dtype=self.dtype)
        valid = np.ones((len(indices), side, side), dtype=bool)
        for b, index in enumerate(indices):
            pixels = self.image(index)
            top, left = (int(f * (max(n - side, 0) + 1)) for f, n in zip((y[b], x[b]), pixels.shape[1:], strict=True))
            cut = pixels[:, top : top + side, left : left + side]
            rows, columns = cut.shape[1:]
            if labelled:
                label = nearest_label(self.label(index), pixels.shape[1:])
                valid[b, :rows, :columns] = label[top : top + side, left : left + side] != IGNORE
            if (rows, columns) != (side, side):
                valid[b, rows:] = valid[b, :, columns:] = False
                cut = np.pad(cut, ((0, 0), (0, side - rows), (0, side - columns)), mode="edge")
            batch[b] = cut
        return batch, None if valid.all() else valid

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


def nearest_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at another size, by the nearest pixel's centre."""
    if label.shape == tuple(size):
        return label
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(np.intp) for n, m in zip(label.shape, size, strict=True))
    return label[rows[:, None], columns]


def to_float(pixels: np.ndarray) -> torch.Tensor:
    """Pixels of any accepted dtype -> float32 tensor in [0, 1].

    By numpy, since reading threads call it: a second thread that wakes torch's pool would contend with the network.
    """
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(WHITE[pixels.dtype]))
