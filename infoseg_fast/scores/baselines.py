"""Baselines without a trained network: constant predictor, k-means, mixtures of normal
distributions.

They are fitted to pixels of the train split without labels. They are scored on the same images and
pixels as a network, with the same matching of clusters to classes (`evaluate.score`).
"""

import importlib
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from ..data import ImageSet, open_set
from ..defaults import float32_on_cpu
from ..errors import DataError
from ..model import STRIDE, grey
from ..ops.confusion_matrix import confusion_matrix
from ..recipe.labelling import grouped
from ..recipe.overclustering import MAX_CLASSES
from ..recipe.resampling import block_statistics, resampled_merge
from ..recipe.sample import SAMPLE_CROPS, Sample
from .evaluate import score

METHODS = ("constant", "kmeans", "kmeans-gabor", "mixture", "mixture-merged", "kmeans-backbone")
FIT_IMAGES = 2000  # largest number of images that a fit reads
FREQUENCIES, ORIENTATIONS = (0.4, 0.2, 0.1), 4  # Gabor filters: cycles per pixel; number of angles in half a turn
BLUR_SIGMA = 2.0  # pixels, blur of the mixture's features
COMPONENTS_PER_CLASS = 3  # components of `mixture-merged` for each cluster
MERGE_CROP = 128  # pixels, largest side of the crops for the merge

PixelMap = Callable[[Tensor], Tensor]


@float32_on_cpu()
def baseline(
    method: str,
    data: str,
    split: str = "eval",
    *,
    num_clusters: int | None = None,
    samples: int = 500_000,
    seed: int = 0,
    progress: bool = False,
    backbone: dict | None = None,
) -> tuple[dict, list[str] | None]:
    """Fit a method to the train split of a set and score it on `split`.

    Args:
        method: a name of METHODS.
        data: as in `open_set`.
        split: the split that is scored.
        num_clusters: number of clusters. None: number of classes of the ground truth.
        samples: number of pixels that the method is fitted to.
        seed: seed of all random numbers.
        progress: whether to show a progress bar.
        backbone: for kmeans-backbone: "backbone", "weights" and "local_index"
            (`fit_kmeans_backbone`).

    Returns:
        The scores (see `evaluate.score`) and the names of the classes.

    Raises:
        DataError: the data cannot be read or has no labels, an argument is out of range, or
            scikit-learn or scikit-image is not installed.
    """
    if not 0 <= seed < 2**32:
        raise DataError(f"--seed must be from 0 to {2**32 - 1}, not {seed}")
    images = open_set(data, split)
    if not images.has_labels:
        raise DataError(f"--data {data} has no labels for its {split} split: nothing to score")
    images.check_labels()
    number = (images.num_classes or 0) if num_clusters is None else num_clusters
    if num_clusters is None and number < 2:
        raise DataError(f"the labels of --data {data} name fewer than two classes; give the number with --classes")
    if not 2 <= number <= 256 or samples < number:
        raise DataError(f"--classes must be from 2 to 256 and --samples at least that, not {number} and {samples}")
    train_set = open_set(data, "train")
    images.scaling = train_set.scaling
    if method == "kmeans-backbone":
        from .backbone_baseline import fit_kmeans_backbone

        labels = fit_kmeans_backbone(train_set, number, seed, **(backbone or {}))
    else:
        labels = predict_constant if method == "constant" else fit(method, train_set, number, samples, seed)

    def count(pixels: Tensor, target: Tensor) -> Tensor:
        return torch.as_tensor(confusion_matrix(labels(pixels), target, number, images.num_targets))

    return score(count, number, images, progress), images.classes


def predict_constant(pixels: Tensor) -> Tensor:
    """Label 0 for every pixel. The matching gives it the most frequent class."""
    return torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.uint8)


def fit(method: str, images: ImageSet, number: int, samples: int, seed: int) -> PixelMap:
    """Fit `number` clusters to random pixels of the images.

    Args:
        method: a name of METHODS, neither constant nor kmeans-backbone.
        images: the train split.
        number: number of clusters.
        samples: least number of pixels.
        seed: seed of the pixels and of the method.

    Returns:
        A function that maps pixels, float [B, c, H, W] in [0, 1], to labels, uint8 [B, H, W].

    Raises:
        DataError: scikit-learn or scikit-image is not installed, or no pixel has data.
    """
    own: dict[str, PixelMap] = {"kmeans": lambda pixels: pixels, "kmeans-gabor": Gabor()}
    features = own.get(method, blurred_channels)
    is_mixture = method.startswith("mixture")
    learn = required("sklearn.mixture" if is_mixture else "sklearn.cluster", "scikit-learn")

    def points_of(index: int) -> Tensor:
        pixels, valid = fit_pixels(images, index)
        return features(images.scaling.to_float(pixels)[None])[0].flatten(1).T[torch.from_numpy(valid.ravel())]

    points = sampled(points_of, images, samples, seed).numpy()
    mean, std = points.mean(axis=0), points.std(axis=0)
    std[std < 1e-6] = 1
    if method == "kmeans":  # the channels have the same scale already
        mean, std = np.zeros_like(mean), np.ones_like(std)
    points = (points - mean) / std
    mean, std = torch.from_numpy(mean), torch.from_numpy(std)

    def scaled(pixels: Tensor) -> Tensor:
        """Features [B, H, W, n]."""
        return (features(pixels).movedim(1, -1) - mean) / std

    if is_mixture:
        merges = method == "mixture-merged"
        components = min(MAX_CLASSES, COMPONENTS_PER_CLASS * number) if merges else number
        model = learn.GaussianMixture(components, n_init=3, reg_covar=1e-3, random_state=seed).fit(points)

        def probabilities(pixels: Tensor) -> Tensor:
            """Probabilities of the components, [B, components, H, W]."""
            found = scaled(pixels)
            probs = torch.from_numpy(model.predict_proba(found.flatten(0, -2).numpy()))
            return probs.float().view(*found.shape[:-1], components).movedim(-1, 1)

        groups = merged_components(probabilities, images, number) if merges else None
        return lambda pixels: grouped(probabilities(pixels), groups).argmax(dim=1).to(torch.uint8)

    model = learn.MiniBatchKMeans(number, random_state=seed, batch_size=4096, n_init=5).fit(points)
    centres = torch.from_numpy(model.cluster_centers_.astype(np.float32))
    offset = (centres**2).sum(1)
    return lambda pixels: (offset - 2 * scaled(pixels) @ centres.T).argmin(-1).to(torch.uint8)


def merged_components(probabilities: PixelMap, images: ImageSet, number: int) -> list[list[int]]:
    """The components of each of `number` clusters, by the partition score of the default recipe
    (`recipe.merging`).
    """
    side = images.crop_side or min(MERGE_CROP, *(min(size) for size in images.sizes))
    chosen = images.evenly_spread(SAMPLE_CROPS)

    def crops() -> Iterator[tuple[Tensor, Tensor | None]]:
        for index in chosen:
            centre = np.array([0.5])
            pixels, valid = images.crops(np.array([index]), centre, centre, side)
            yield images.scaling.to_float(pixels), None if valid is None else torch.from_numpy(valid)

    sample = Sample(crops)
    probs = [F.avg_pool2d(probabilities(crop), STRIDE) for crop, _ in sample.batches]
    masks = [mask for _, mask in sample.batches]
    return resampled_merge(block_statistics(zip(probs, sample.statistics(0), masks, strict=True)), number)


def sampled(points_of: Callable[[int], Tensor], images: ImageSet, samples: int, seed: int) -> Tensor:
    """At least `samples` random points of at most FIT_IMAGES images, [n, features].

    Args:
        points_of: gives the points with data of an image by its index, [m, features].
        images: the set.
        samples: least number of points.
        seed: seed of the choice.

    Raises:
        DataError: no image has a point with data.
    """
    rng = np.random.default_rng(seed)
    chosen = images.evenly_spread(FIT_IMAGES)
    samples_per_image = -(-samples // len(chosen))
    parts = []
    for index in chosen:
        points = points_of(index)
        if len(points):
            parts.append(points[torch.from_numpy(rng.integers(0, len(points), samples_per_image))])
    if not parts:
        raise DataError(f"{images.name} has no pixel with data to fit the clusters to")
    return torch.cat(parts)


def fit_pixels(images: ImageSet, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that an image gives to a fit, as stored, [c, H, W], and where they have data, bool [H,
    W]. They are the centre crop if the set's protocol cuts crops, else the whole image.
    """
    if images.crop_side is None:
        pixels, valid = images.scaled(index)
        return pixels, np.ones(pixels.shape[1:], dtype=bool) if valid is None else valid
    centre = np.array([0.5])
    batch, mask = images.crops(np.array([index]), centre, centre, images.crop_side)
    return batch[0], np.ones(batch.shape[2:], dtype=bool) if mask is None else mask[0]


def blurred_channels(pixels: Tensor) -> Tensor:
    """The channels, each blurred: [B, c, H, W]."""
    return gaussian_blur(pixels.flatten(0, 1)[:, None], BLUR_SIGMA).view(pixels.shape)


class Gabor:
    """The channels and the Gabor energies of the grey image, blurred by the width of each filter:
    [B, c, H, W] -> [B, c + f * o, H, W] for f frequencies and o orientations.
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
        # Mirrored at the border, several times if the image is smaller than the filter.
        y, x = (mirrored(n, self.radius) for n in (rows, columns))
        padded = grey(pixels)[:, 0][:, y][:, :, x]
        size = next_fast_len(padded.shape[1]), next_fast_len(padded.shape[2])  # the extra zeros reach no pixel
        spectrum = torch.fft.fft2(padded, s=size)
        maps = [pixels]
        for kernel, transformed, width in zip(self.kernels, self.spectra(size), self.widths, strict=True):
            response = torch.fft.ifft2(spectrum * transformed).abs()
            top, left = (self.radius + n // 2 for n in kernel.shape)
            energy = response[:, top : top + rows, left : left + columns]
            maps.append(gaussian_blur(energy[:, None], width))
        return torch.cat(maps, dim=1)


def mirrored(n: int, radius: int) -> Tensor:
    """Positions 0 .. n - 1 continued by mirroring on both sides: [n + 2 * radius]."""
    position = torch.arange(-radius, n + radius) % (2 * n)
    return torch.where(position < n, position, 2 * n - 1 - position)


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, 1, H, W], mirrored at the border; `sigma` in pixels."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    y, x = (mirrored(n, radius) for n in maps.shape[2:])
    maps = maps[:, :, y][:, :, :, x]
    return F.conv2d(F.conv2d(maps, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def required(module: str, package: str) -> ModuleType:
    """Import a module of the extra `baselines`.

    Raises:
        DataError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"this baseline needs {package}: pip install 'infoseg-fast[baselines]'") from error
