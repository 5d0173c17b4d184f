"""What a trained network must beat: the constant predictor, k-means on colours or on Gabor energies, and a mixture of
normal distributions of blurred colours.

All are scored as a network is (`evaluate.score`): the same images, pixels and matching of clusters to classes. They are
fitted to pixels of the train split and see no label.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from ..data import ImageSet, open_set
from ..data.base import to_float
from ..errors import DataError
from ..model import grey
from ..ops.confusion_matrix import confusion_matrix
from .evaluate import score

METHODS = ("constant", "kmeans", "kmeans-gabor", "mixture")
FIT_IMAGES = 2000  # at most, spread evenly over the train split
FREQUENCIES, ORIENTATIONS = (0.4, 0.2, 0.1), 4  # cycles a pixel
BLUR = 2.0  # standard deviation in pixels of what the mixture sees


def baseline(
    method: str,
    data: str,
    split: str = "eval",
    *,
    num_clusters: int | None = None,
    samples: int = 500_000,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict, list[str] | None]:
    """Fit a method of METHODS to the train split of the data and score it on `split`: scores, and the class names.

    Raises:
        DataError: the data is not as it must be or has no labels, or scikit-learn or scikit-image is not installed.
    """
    images = open_set(data, split)
    if not images.has_labels:
        raise DataError(f"--data {data} has no labels for its {split} split, so nothing to score by")
    images.check_labels()
    number = num_clusters or images.num_classes
    if not 2 <= number <= 256 or samples < number:
        raise DataError(f"--classes must be from 2 to 256 and --samples at least that, not {number} and {samples}")
    if method == "constant":
        labels = predict_constant
    elif method == "mixture":
        labels = fitted_mixture(open_set(data, "train"), number, samples, seed)
    else:
        features = colours if method == "kmeans" else Gabor()
        labels = fitted_kmeans(features, open_set(data, "train"), number, samples, seed)

    def count(pixels: Tensor, target: Tensor) -> Tensor:
        return confusion_matrix(labels(pixels), target, number, images.num_targets)

    return score(count, number, images, progress), images.classes


def predict_constant(pixels: Tensor) -> Tensor:
    """One cluster for every pixel, which the matching gives the commonest class."""
    return torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.uint8)


def colours(pixels: Tensor) -> Tensor:
    """The channels as they are: [B, c, H, W]."""
    return pixels


def blurred(pixels: Tensor) -> Tensor:
    """The channels, each blurred: [B, c, H, W]."""
    return smoothed(pixels.flatten(0, 1)[:, None], BLUR).view(pixels.shape)


class Gabor:
    """Channels, and energies of Gabor filters of the grey image, each averaged over the filter's own width.

    For f frequencies and o orientations: [B, c, H, W] -> [B, c + f * o, H, W].
    """

    def __init__(self) -> None:
        skimage_filters = required("skimage.filters", "scikit-image")
        self.kernels, self.widths = [], []
        for frequency in FREQUENCIES:
            for step in range(ORIENTATIONS):
                kernel = skimage_filters.gabor_kernel(frequency, theta=math.pi * step / ORIENTATIONS)
                self.kernels.append(torch.from_numpy(kernel).to(torch.complex64))
                self.widths.append(0.5 / frequency)
        self.radius = max(max(kernel.shape) for kernel in self.kernels) // 2
        self.spectra = lru_cache(maxsize=4)(self._spectra)

    def _spectra(self, size: tuple[int, int]) -> list[Tensor]:
        return [torch.fft.fft2(kernel, s=size) for kernel in self.kernels]

    def __call__(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[2:]
        # Mirrored at the border as often as a small image needs.
        y, x = (mirrored(n, self.radius) for n in (rows, columns))
        padded = grey(pixels)[:, 0][:, y][:, :, x]
        size = tuple(next_fast_len(n) for n in padded.shape[1:])  # what is added reaches no pixel
        spectrum = torch.fft.fft2(padded, s=size)
        maps = [pixels]
        for kernel, transformed, width in zip(self.kernels, self.spectra(size), self.widths, strict=True):
            response = torch.fft.ifft2(spectrum * transformed).abs()
            top, left = (self.radius + n // 2 for n in kernel.shape)
            energy = response[:, top : top + rows, left : left + columns]
            maps.append(smoothed(energy[:, None], width))
        return torch.cat(maps, dim=1)


def mirrored(n: int, radius: int) -> Tensor:
    """Positions 0 .. n - 1 continued by mirroring: [n + 2 * radius]."""
    position = torch.arange(-radius, n + radius) % (2 * n)
    return torch.where(position < n, position, 2 * n - 1 - position)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, 1, H, W], the border mirrored."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    y, x = (mirrored(n, radius) for n in maps.shape[2:])
    maps = maps[:, :, y][:, :, :, x]
    return F.conv2d(F.conv2d(maps, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def drawn_points(features: Callable[[Tensor], Tensor], images: ImageSet, samples: int, seed: int) -> np.ndarray:
    """Features of at least `samples` pixels drawn at random: [n, features]."""
    rng = np.random.default_rng(seed)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(FIT_IMAGES, len(images))).round().astype(int))
    each = -(-samples // len(chosen))
    drawn = []
    for index in chosen:
        pixels, valid = fit_pixels(images, int(index))
        found = features(to_float(pixels)[None])[0].flatten(1).T[torch.from_numpy(valid.ravel())]
        drawn.append(found[torch.from_numpy(rng.integers(0, len(found), each))].numpy())
    return np.concatenate(drawn)


def fitted_kmeans(
    features: Callable[[Tensor], Tensor], images: ImageSet, number: int, samples: int, seed: int
) -> Callable[[Tensor], Tensor]:
    """Mini-batch k-means on features of pixels drawn at random: what labels pixels [B, c, H, W] by it, [B, H, W]."""
    cluster = required("sklearn.cluster", "scikit-learn")
    points = drawn_points(features, images, samples, seed)
    mean, std = points.mean(axis=0), points.std(axis=0)
    std[std < 1e-6] = 1
    # Colours share one scale, so they stay as they are; energies of filters do not.
    if features is colours:
        mean, std = np.zeros_like(mean), np.ones_like(std)
    model = cluster.MiniBatchKMeans(number, random_state=seed, batch_size=4096, n_init=5)
    model.fit((points - mean) / std)
    centres = torch.from_numpy(model.cluster_centers_.astype(np.float32))
    offset = (centres**2).sum(1)
    mean, std = torch.from_numpy(mean), torch.from_numpy(std)

    def labels(pixels: Tensor) -> Tensor:
        found = features(pixels).movedim(1, -1)
        flat = (found.reshape(-1, found.shape[-1]) - mean) / std
        return (offset - 2 * flat @ centres.T).argmin(1).to(torch.uint8).view(found.shape[:-1])

    return labels


def fitted_mixture(images: ImageSet, number: int, samples: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A mixture of normal distributions with full covariances: what labels pixels [B, c, H, W] by it, [B, H, W]."""
    mixture = required("sklearn.mixture", "scikit-learn")
    points = drawn_points(blurred, images, samples, seed)
    mean, std = points.mean(axis=0), points.std(axis=0)
    std[std < 1e-6] = 1
    model = mixture.GaussianMixture(number, n_init=3, reg_covar=1e-3, random_state=seed)
    model.fit((points - mean) / std)

    def labels(pixels: Tensor) -> Tensor:
        found = blurred(pixels).movedim(1, -1)
        flat = (found.reshape(-1, found.shape[-1]).numpy() - mean) / std
        return torch.from_numpy(model.predict(flat).astype(np.uint8)).view(found.shape[:-1])

    return labels


def fit_pixels(images: ImageSet, index: int) -> tuple[np.ndarray, np.ndarray]:
    """What of an image the fit sees, and which of its pixels are valid: the centre crop where the set's protocol cuts
    crops, else the whole image."""
    if images.crop_side is None:
        pixels = images.image(index)
        return pixels, np.ones(pixels.shape[1:], dtype=bool)
    centre = np.array([0.5])
    batch, valid = images.crops(np.array([index]), centre, centre, images.crop_side)
    return batch[0], np.ones(batch.shape[2:], dtype=bool) if valid is None else valid[0]


def required(module: str, package: str):
    """A module of the extra `baselines`; DataError in one line when it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"this baseline needs {package}: pip install 'infoseg-fast[baselines]'") from error
