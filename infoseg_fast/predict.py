"""Label PNGs for images and folders of images."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from .data.base import to_channels, to_float
from .data.images import IGNORE, describe, read_image
from .data.names import image_files, stem_of
from .errors import DataError
from .palette import as_rgb, coloured, overlaid
from .segmenter import Segmenter


def targets(sources: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The label file of every image: of a folder's images under their path below it, of a single one under its name."""
    found: dict[Path, Path] = {}
    for source in sources:
        if source.is_dir():
            images, root = image_files(source), source
            if not images:
                raise DataError(f"{source} holds no file in a format that Pillow reads")
        elif source.exists():
            images, root = [source], source.parent
        else:
            raise DataError(f"{source} does not exist; give an image or a folder of images")
        for image in images:
            target = out / f"{stem_of(image, root)}.png"
            if target in found.values():
                other = next(path for path, taken in found.items() if taken == target)
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
) -> int:
    """Write an 8-bit label PNG of each image's size; the number of images.

    A run on a prepared benchmark sees the files resized as the benchmark's images were.

    Args:
        sources: images, or folders whose images (subfolders included) are all taken.
        out: the folder written to; a folder's images keep their relative paths.
        overlay: write <stem>.overlay.png too, the labels in colour over the image.
        match: write classes by the mapping of the run's last evaluation, 255 for a cluster without one, instead of
            clusters.

    Raises:
        DataError: an image cannot be read or has another number of channels (found before anything is written, unless
            its body is damaged), or there is no mapping.
    """
    if match and segmenter.mapping is None:
        raise DataError(
            "--match: no evaluation has matched this checkpoint's clusters to classes; run infoseg eval first"
        )
    data = segmenter.labelling.data
    channels = data.channels
    segmenter.scale = data.scale * data.raw_scale
    found = targets(sources, out)
    for path in found:
        header = describe(path)
        if header.bands not in (1, channels):
            raise DataError(f"image {path} has {header.bands} channels; the run was trained on {channels}")
    table = np.arange(256, dtype=np.uint8)
    number = segmenter.num_clusters
    if match:
        mapping = np.array(segmenter.mapping)
        table[: len(mapping)] = np.where(mapping < 0, IGNORE, mapping)
        number = int(mapping.max()) + 1
    for path, target in tqdm(found.items(), desc="predicting", unit="image", disable=None):
        pixels = to_float(to_channels(read_image(path).pixels, channels))
        labels = table[segmenter.segment(pixels[None].to(device))[0].cpu().numpy()]
        write_png(target, labels)
        if overlay:
            drawn = overlaid(as_rgb(pixels.numpy()), coloured(labels, number))
            write_png(target.with_suffix(".overlay.png"), drawn)
    return len(found)


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
