"""The speed of cutting a raster into training crops, and the memory of training on a large raster.

    python benchmarks/crops.py speed [--side 6144] [--compression none deflate lzw zstd]
    python benchmarks/crops.py memory [--side 20000] [--bands 8]

`speed` writes tiled GeoTIFFs of 4 bands of uint16 with smooth noise. It prints the crops of 128 x
128 per second of the loader in one process, in wall-clock and in processor time. `memory` writes a
raster whose tiles share one tile of the file, trains a few steps on it and prints the peak RSS.
`speed` needs rasterio (extra `geo`).
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import imagecodecs
import numpy as np
import rasterio
from rasterio.windows import Window

from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.data import for_training, open_set
from infoseg_fast.data.crops import CropSampler, crop_loader

CROP, BATCH = 128, 32
TILE = 256
TRAIN = """
import resource, sys
import infoseg_fast as isf
isf.train(sys.argv[1], sys.argv[2], classes=6, steps=20, checkpoint_every=20, eval_every=0)
print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
"""


def tile_of(rng: np.random.Generator, bands: int) -> np.ndarray:
    """[bands, TILE, TILE] uint16 of 12 bits: gradients with noise of 5 bits, as satellite images
    have.
    """
    y, x = np.mgrid[:TILE, :TILE] / TILE
    smooth = 1500 + 800 * np.sin(6 * x + rng.random() * 6) * np.cos(5 * y + rng.random() * 6)
    return (smooth + rng.normal(0, 20, (bands, TILE, TILE))).clip(1, 4095).astype(np.uint16)


def write(path: Path, side: int, bands: int, compression: str, distinct: int) -> None:
    """A tiled GeoTIFF of `side` pixels that repeats `distinct` tiles."""
    rng = np.random.default_rng(0)
    tiles = [tile_of(rng, bands) for _ in range(distinct)]
    layout = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "interleave": "pixel", "BIGTIFF": "IF_SAFER"}
    if compression != "none":
        layout |= {"compress": compression, "predictor": 2}
    if compression == "deflate":
        layout["zlevel"] = 1
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=bands, dtype="uint16", **layout
    ) as file:
        for number, (row, column) in enumerate(np.ndindex(*(2 * [-(-side // TILE)]))):
            height, width = (min(TILE, side - TILE * n) for n in (row, column))
            part = tiles[number % distinct][:, :height, :width]
            file.write(part, window=Window(column * TILE, row * TILE, width, height))


def speed(side: int, compressions: list[str], batches: int, workers: int) -> None:
    keep_freed_memory()  # as infoseg train does
    with tempfile.TemporaryDirectory() as folder:
        for compression in compressions:
            path = Path(folder) / f"{compression}.tif"
            write(path, side, 4, compression, 64)
            images = for_training(open_set(str(path), "train"))
            loader = crop_loader(images, CROP, CropSampler(len(images), BATCH, 2, 0, 0, batches), workers)
            crops, began, used = 0, time.perf_counter(), time.process_time()
            for batch in loader:
                crops += len(batch.images)
            wall, processor = time.perf_counter() - began, time.process_time() - used
            print(
                f"{compression:<8} {path.stat().st_size / 2**20:5.0f} MB   {crops / wall:7.0f} crops/s by wall clock   "
                f"{crops / processor:7.0f} by processor time",
                flush=True,
            )
            path.unlink()


def write_large(path: Path, side: int, bands: int) -> None:
    """A tiled TIFF of `side` pixels all of whose tiles are the same compressed bytes."""
    tile = np.ascontiguousarray(tile_of(np.random.default_rng(0), bands).transpose(1, 2, 0))
    data, tiles = imagecodecs.zstd_encode(tile), (-(-side // TILE)) ** 2
    zstd, black_is_0, contiguous = 50000, 1, 1
    tags = {  # number: (type, values); 3 is uint16, 4 is uint32
        256: (4, [side]), 257: (4, [side]), 258: (3, [16] * bands), 259: (3, [zstd]), 262: (3, [black_is_0]),
        277: (3, [bands]), 284: (3, [contiguous]), 322: (3, [TILE]), 323: (3, [TILE]),
        324: (4, [8] * tiles), 325: (4, [len(data)] * tiles), 338: (3, [0] * (bands - 1)), 339: (3, [1] * bands),
    }  # fmt: skip
    tags = {number: (kind, values) for number, (kind, values) in tags.items() if values}
    first = 8 + len(data) + len(data) % 2
    end = first + 2 + 12 * len(tags) + 4
    entries, arrays = b"", b""
    for number, (kind, values) in tags.items():
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack("<I", end + len(arrays))
            arrays += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack("<HHI", number, kind, len(values)) + place
    header = struct.pack("<2sHI", b"II", 42, first)
    path.write_bytes((header + data).ljust(first, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4) + arrays)


def memory(side: int, bands: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        write_large(path, side, bands)
        print(f"{side} x {side} pixels of {bands} bands, {side**2 * bands * 2 / 2**30:.1f} GiB", flush=True)
        subprocess.run([sys.executable, "-c", TRAIN, str(path), str(Path(folder) / "run")], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--compression", nargs="+", default=["none", "deflate", "lzw", "zstd"])
    parser.add_argument("--batches", type=int, default=288)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--side", type=int, help="pixels (default: 6144 for speed, 20000 for memory)")
    parser.add_argument("--bands", type=int, default=8)
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.side or 6144, args.compression, args.batches, args.workers)
    else:
        memory(args.side or 20_000, args.bands)
