"""Measure the two speeds of docs/benchmarks.md: feeding crops from a prepared set, and preparing
raw images.

    python benchmarks/data_throughput.py feed DIR [--images 51804]       # writes 6.6 GB to DIR once
    python benchmarks/data_throughput.py prepare DIR [--images 3000] [--workers 2]

Pixels are synthetic, in COCO's sizes. Wall-clock and processor times are printed. Other processes
disturb processor times less.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from infoseg_fast.data import open_set, prepare
from infoseg_fast.data.crops import CropSampler, crop_loader
from infoseg_fast.data.protocols import PROTOCOLS, ImageList, Options
from infoseg_fast.data.raw import Raw

PROTOCOL = PROTOCOLS["coco-stuff-15"]
PARTS = ("train2017", "val2017")


def write_prepared(out: Path, images: int) -> None:
    """Write a prepared set of noise, without a raw download."""
    rng = np.random.default_rng(0)
    choices = np.array([(158, 211), (141, 211), (211, 158), (211, 141), (124, 165), (211, 211)])
    sizes = choices[rng.choice(len(choices), images, p=[0.35, 0.3, 0.15, 0.1, 0.06, 0.04])]
    held_out = [i >= images * 0.958 for i in range(images)]
    stems = [f"{PARTS[held]}/{i:012d}" for i, held in enumerate(held_out)]
    raw = Raw([None] * images, stems, [PARTS[h] for h in held_out], [True] * images, held_out, 1, 512, {})
    index, groups = prepare.plan(PROTOCOL, raw, [tuple(size) for size in sizes.tolist()])
    manifest = prepare.manifest_of(PROTOCOL, Options(), raw, index) | {"shards": []}
    (out / prepare.SHARDS).mkdir(parents=True)
    for shard, group in enumerate(groups):
        place = index[group.start : group.stop]
        pixels = int((place["rows"].astype(np.int64) * place["columns"]).sum())
        paths = prepare.shard_paths(out / prepare.SHARDS, shard)
        rng.integers(0, 256, 3 * pixels, dtype=np.uint8).tofile(paths[0])
        labels = rng.integers(0, 20, pixels // 64 + 1, dtype=np.uint8).repeat(64)[:pixels]
        np.where(labels < 15, labels, 255).astype(np.uint8).tofile(paths[1])
        manifest["shards"].append({"image_bytes": 3 * pixels, "label_bytes": pixels})
    np.save(out / prepare.INDEX_FILE, index)
    manifest["index_sha256"] = hashlib.sha256((out / prepare.INDEX_FILE).read_bytes()).hexdigest()
    (out / prepare.STEMS).write_text("\n".join(stems) + "\n")
    (out / prepare.MANIFEST).write_text(json.dumps(manifest))


def anonymous_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def feed(folder: Path, images: int, epochs: int = 4, batch_size: int = 64) -> None:
    """Read 128 x 128 crops in the order of the training loop, with its loader, in one process."""
    if not (folder / prepare.MANIFEST).is_file():
        write_prepared(folder, images)
    found = open_set(str(folder), "train")
    for loss_mask in ("none", "gt"):
        for epoch in range(epochs):
            steps = len(found) // batch_size
            sampler = CropSampler(len(found), batch_size, 2, 0, epoch * steps, (epoch + 1) * steps)
            began, used, crops = time.perf_counter(), time.process_time(), 0
            for batch in crop_loader(found, PROTOCOL.window, sampler, 0, loss_mask == "gt"):
                crops += len(batch.images)
            rates = [crops / (time.perf_counter() - began), crops / (time.process_time() - used)]
            print(
                f"loss mask {loss_mask}, epoch {epoch}: {rates[0]:,.0f} crops/s wall clock, {rates[1]:,.0f} processor "
                f"time; RssAnon {anonymous_megabytes():.0f} MB"
            )


def write_raw(root: Path, images: int) -> None:
    """Write raw COCO-Stuff: JPEGs of about 150 kB of noisy smooth textures; label maps of regions
    and a disc.
    """
    rng = np.random.default_rng(0)
    for folder in ("images", "annotations", "curated"):
        for part in PARTS:
            (root / folder / part).mkdir(parents=True)
    for i in range(images):
        part = PARTS[i >= images * 0.958]
        rows, columns = ((480, 640), (427, 640), (640, 480))[i % 3]
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((columns, rows))
        pixels = np.asarray(coarse) + rng.normal(0, 11, (rows, columns, 1))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(root / "images" / part / f"{i:012d}.jpg", quality=90)
        label = Image.fromarray(rng.choice([255, 156, 123, 110, 0, 170, 95], (6, 6)).astype(np.uint8))
        label = np.array(label.resize((columns, rows), Image.Resampling.NEAREST))
        y, x = np.mgrid[:rows, :columns]
        label[(y - rows / 2) ** 2 + (x - columns / 2) ** 2 < 6400 + 900 * np.sin(x / 9)] = 17
        Image.fromarray(label).save(root / "annotations" / part / f"{i:012d}.png")
    for part, listed in zip(PARTS, PROTOCOL.lists, strict=True):
        names = sorted(path.stem for path in (root / "images" / part).iterdir())
        (root / "curated" / part / f"{listed.name}.txt").write_text("".join(f"{name}\n" for name in names))


def processor_seconds() -> float:
    """Processor time of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def prepare_raw(root: Path, images: int, workers: int) -> None:
    if not root.exists():
        write_raw(root, images)
    lists = []
    for listed in PROTOCOL.lists:
        data = (root / "curated" / listed.part / f"{listed.name}.txt").read_bytes()
        lists.append(ImageList(listed.part, listed.name, len(data.split()), hashlib.sha256(data).hexdigest()))
    PROTOCOLS[PROTOCOL.name] = dataclasses.replace(PROTOCOL, lists=tuple(lists))
    out = root.with_name(f"{root.name}-prepared")
    shutil.rmtree(out, ignore_errors=True)
    began, before = time.perf_counter(), processor_seconds()
    manifest = prepare.prepare(PROTOCOL.name, root, out, workers=workers)
    seconds, number = time.perf_counter() - began, manifest["images"]
    processor = processor_seconds() - before
    megabytes = sum(path.stat().st_size for path in root.rglob("*.jpg")) / 1e6
    print(
        f"{number} images of {megabytes / number * 1000:.0f} kB, {workers} processes: {number / seconds:.0f} images/s "
        f"by wall clock; {processor / number * 1000:.1f} ms of processor time each, "
        f"{number / processor * workers:.0f} images/s on {workers} otherwise idle cores"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("feed", "prepare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "feed":
        feed(arguments.folder, arguments.images or 51804)
    else:
        prepare_raw(arguments.folder, arguments.images or 3000, arguments.workers)
