"""Measure `infoseg predict` of a run: speed, memory, and the segmenter's own speed beside it.

    python benchmarks/predict.py RUN DIR [--rows 10000] [--columns 12000] [--kind tiled] [--folder N]

Writes a synthetic image of the run's channels to DIR once (or N images with --folder), then calls
`infoseg predict` in a process of its own, with one thread, and its function in this process,
without the start of Python. Printed are megapixels per second of wall-clock and of processor time
(other processes disturb the latter less) and the peak resident memory. "segmenter" is
`Segmenter.segment_array` on an image of 2,048 x 2,048 in memory, "two passes" the same as larger
images are segmented.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image

import infoseg_fast as isf
from infoseg_fast import tile_labels
from infoseg_fast.allocator import keep_freed_memory
from infoseg_fast.maps.predict import predict
from infoseg_fast.maps.writers import PngWriter

CELL = 64  # pixels of one colour, before the noise
ROWS = 256  # made at a time
REPEATS = 3
# `infoseg`, with its own peak memory: not ru_maxrss, which a process inherits from the one that started it.
INFOSEG = """
import sys
from infoseg_fast.cli import main
status = main()
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"peak resident memory: {peak / 2**10:.0f} MiB")
sys.exit(status)
"""


def rows_of(rows: int, columns: int, channels: int):
    """An image as blocks of rows, uint8 [n, columns, channels]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 220, (rows // CELL + 1, columns // CELL + 1, channels)).astype(np.float32)
    for first in range(0, rows, ROWS):
        y = np.arange(first, min(first + ROWS, rows)) // CELL
        block = coarse[y][:, np.arange(columns) // CELL]
        yield (block + rng.standard_normal(block.shape, np.float32) * 6).clip(0, 255).astype(np.uint8)


def write_image(path: Path, kind: str, rows: int, columns: int, channels: int) -> None:
    """kind: "tiled" (GeoTIFF, deflate), "plain" (TIFF, uncompressed strips) or "png"."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = rows_of(rows, columns, channels)
    if kind == "png":
        writer = PngWriter(path, (rows, columns), "", bands=channels)
        for block in blocks:
            writer.write(block)
        writer.finish()
        return
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    how = {"crs": "EPSG:32633", "transform": from_origin(4e5, 5e6, 10, 10)}
    how |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"} if kind == "tiled" else {}
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(
        path, "w", driver="GTiff", height=rows, width=columns, count=channels, dtype="uint8", interleave="pixel", **how
    ) as file:  # fmt: skip
        for i, block in enumerate(blocks):
            file.write(block.transpose(2, 0, 1), window=Window(0, i * ROWS, columns, len(block)))


def remove_maps(out: Path) -> None:
    for file in out.rglob("*.*"):
        file.unlink()


def timed(call: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """The least wall-clock and processor seconds of a few calls."""
    found = []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - began, time.process_time() - used))
    return min(wall for wall, _ in found), min(used for _, used in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=12_000)
    parser.add_argument("--kind", choices=("tiled", "plain", "png"), default="tiled")
    parser.add_argument("--folder", type=int, metavar="N", help="N PNGs of that size instead of one image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = isf.load(arguments.run)
    channels = segmenter.labelling.data.channels
    rows, columns = arguments.rows, arguments.columns
    if arguments.folder:
        source = arguments.dir / f"folder_{rows}x{columns}"
        for i in range(arguments.folder):
            path = source / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.fromarray(next(rows_of(min(rows, ROWS), columns, channels))).resize((columns, rows)).save(path)
    else:
        source = arguments.dir / f"{arguments.kind}_{rows}x{columns}.{'png' if arguments.kind == 'png' else 'tif'}"
        write_image(source, arguments.kind, rows, columns, channels)

    keep_freed_memory()
    pixels = np.concatenate(list(rows_of(2048, 2048, channels))).transpose(2, 0, 1)
    for name, kept in (("segmenter", tile_labels.KEPT_BYTES), ("segmenter, two passes", 0)):
        tile_labels.KEPT_BYTES = kept
        report(name, pixels[0].size, *timed(lambda: segmenter.segment_array(pixels)))

    out = arguments.dir / "maps"
    remove_maps(out)
    own = timed(lambda: predict(segmenter, [source], out), repeats=1)
    report("predict, without the start", rows * columns * (arguments.folder or 1), *own)

    remove_maps(out)
    command = [sys.executable, "-c", INFOSEG, "predict", arguments.run, source, "--out", out]
    began = time.perf_counter()
    subprocess.run([*map(str, command)], check=True)
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    report(
        "infoseg predict, start included", rows * columns * (arguments.folder or 1), wall, used.ru_utime + used.ru_stime
    )


def report(name: str, pixels: int, wall: float, used: float) -> None:
    print(
        f"{name:<32} {pixels / wall / 1e6:6.2f} MP/s of wall-clock time, {pixels / used / 1e6:6.2f} of processor time"
    )


if __name__ == "__main__":
    main()
