"""The effect of the bit depth of files on the score: a folder of 8-bit images, and the same images
as GeoTIFFs of 12-bit values in uint16 with a border of no-data pixels.

    python benchmarks/recipe/bit_depth.py DIR --seeds 0 1 2

DIR has images/ and labels/. The copy is written to a temporary folder, which needs rasterio (extra
`geo`). Both are trained with the default recipe and scored on the eval split.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

import infoseg_fast as isf
from infoseg_fast.data import FolderSet
from infoseg_fast.data.images import IGNORE

BORDER = 8  # pixels without data on each side
NO_DATA = 0
LARGEST = 4095


def write_deep_copy(source: Path, target: Path) -> None:
    """The folder `source` with 12-bit GeoTIFFs in place of its images."""
    images = FolderSet(source)
    around = ((BORDER, BORDER), (BORDER, BORDER))
    for index, stem in enumerate(images.stems):
        pixels = np.rint(images.image(index) * (LARGEST / 255)).astype(np.uint16).clip(1)
        pixels = np.pad(pixels, ((0, 0), *around), constant_values=NO_DATA)
        path = target / "images" / f"{stem}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
            dtype=pixels.dtype, nodata=NO_DATA, crs="EPSG:32643", transform=from_origin(4e5, 3e6, 10, 10),
            compress="deflate",
        ) as file:  # fmt: skip
            file.write(pixels)
        label = np.pad(images.label(index), around, constant_values=IGNORE)
        path = target / "labels" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(path)
    for name in ("train.txt", "eval.txt", "classes.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, help="default: as infoseg train")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, list[float]] = {"8 bits": [], "12 bits": []}
    with tempfile.TemporaryDirectory() as scratch:
        deep = Path(scratch) / "deep"
        write_deep_copy(args.folder, deep)
        for seed in args.seeds:
            for name, folder in zip(found, (args.folder, deep), strict=True):
                run = Path(scratch) / f"{name} {seed}"
                scores = isf.train(folder, run, seed=seed, eval_every=0, steps=args.steps)
                found[name].append(scores["pixel_accuracy"])
                print(
                    f"{name}, seed {seed}: accuracy {scores['pixel_accuracy']:.4f}, NMI {scores['nmi']:.4f}", flush=True
                )
    shallow, deep_mean = (mean(values) for values in found.values())
    print(f"mean accuracy {shallow:.4f} (8 bits), {deep_mean:.4f} (12 bits): difference {deep_mean - shallow:+.4f}")


if __name__ == "__main__":
    main()
