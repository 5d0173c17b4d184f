"""Label PNGs of images and folders of images."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .data.base import to_channels
from .data.images import IGNORE, read_with
from .data.names import image_files, stem_of
from .errors import DataError
from .palette import as_rgb, coloured, overlaid
from .segmenter import Segmenter


def targets(sources: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The label file of every image. Images of a folder keep their path below it; a single image
    keeps its name.

    Raises:
        DataError: a source does not exist or has no image, or two images have one label file.
    """
    found: dict[Path, Path] = {}
    image_of: dict[Path, Path] = {}
    for source in sources:
        if source.is_dir():
            images, root = image_files(source), source
            if not images:
                raise DataError(f"{source} holds no file in a format that is read")
        elif source.exists():
            images, root = [source], source.parent
        else:
            raise DataError(f"{source} does not exist; give an image or a folder of images")
        for image in images:
            target = out / f"{stem_of(image, root)}.png"
            other = image_of.setdefault(target, image)
            if other != image:
                raise DataError(f"{other} and {image} would both be written to {target}")
            if target.resolve() == image.resolve():
                raise DataError(f"{target} would be written over the image itself; choose another --out")
            found[image] = target
    return found


def predict(
    segmenter: Segmenter,
    sources: Sequence[Path],
    out: Path,
    device: torch.device,
    overlay: bool = False,
    match: bool = False,
) -> tuple[int, list[str]]:
    """Write an 8-bit label PNG of each image's size. Pixels without data are 255.

    The images are read, scaled and resized as the training images were.

    Args:
        sources: images, or folders whose images are all taken, with their subfolders.
        out: the folder to write to. Images of a folder keep their relative paths.
        overlay: write <stem>.overlay.png too, the labels in colour over the image.
        match: write classes instead of clusters, by the mapping of the run's last evaluation; 255
            for a cluster without a class.

    Returns:
        The number of images that were written, and a line for each image that failed.

    Raises:
        DataError: there is no mapping, no image, or every image failed.
    """
    if match and segmenter.mapping is None:
        raise DataError(
            "--match: no evaluation has matched this checkpoint's clusters to classes; run infoseg eval first"
        )
    data = segmenter.labelling.data
    segmenter.scale = data.scale * data.raw_scale
    table, number = np.arange(256, dtype=np.uint8), segmenter.num_clusters
    if match:
        mapping = np.array(segmenter.mapping)
        table[: len(mapping)] = np.where(mapping < 0, IGNORE, mapping)
        number = int(mapping.max()) + 1
    found, failures = targets(sources, out), []
    for path, target in tqdm(found.items(), desc="predicting", unit="image", disable=None):
        try:
            image = read_with(path, data.reading)
            channels = len(image.pixels)
            if channels not in (1, data.channels):
                raise DataError(f"image {path} has {channels} channels; the run was trained on {data.channels}")
            if not data.scaling.accepts(image.pixels.dtype):
                raise DataError(
                    f"image {path} has values of {image.pixels.dtype}; the run was trained on {data.scaling.dtype}"
                )
        except DataError as error:
            failures.append(str(error))
            continue
        pixels = data.scaling.to_float(to_channels(image.pixels, data.channels))
        labels = table[segmenter.segment(pixels[None].to(device))[0].cpu().numpy()]
        if image.valid is not None:
            labels[~image.valid] = IGNORE
        write_png(target, labels)
        if overlay:
            drawn = overlaid(as_rgb(pixels.numpy()), coloured(labels, number))
            write_png(target.with_suffix(".overlay.png"), drawn)
    if failures and len(failures) == len(found):
        raise DataError(failures[0])
    return len(found) - len(failures), failures


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG, whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(scratch, format="PNG")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
