"""`infoseg prepare`: verifies a benchmark's raw download, and writes it as shards that can be mapped
into memory.

    DIR/manifest.json       protocol, options, sources, hashes, versions, counts
    DIR/index.npy           one INDEX record for each image
    DIR/stems.txt, classes.txt
    DIR/shards/N.images     uint8, image after image [channels, rows, columns]
    DIR/shards/N.labels     uint8, label map after label map [rows, columns]

Images are stored resized and uncropped. An image smaller than the protocol's window is framed with
zeros (label 255). The folder gets its name when it is complete. Until then `.DIR.partial` holds the
finished shards, and the same command continues there.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..checkpoint import write_atomically
from ..env import versions
from ..errors import DataError
from ..output_folder import FolderLock, clear, require_new
from . import coco, persons, potsdam
from .images import IGNORE
from .protocols import CROWDS, OPTIONS_OF, PARTITIONS, PROTOCOLS, UNLABELLED, Options, Protocol
from .raw import Raw
from .workers import Pool

READERS = {"coco-stuff": coco, "coco-persons": persons, "potsdam": potsdam}
FORMAT = 1  # version of the layout
MANIFEST, INDEX_FILE, STEMS, CLASSES, SHARDS = "manifest.json", "index.npy", "stems.txt", "classes.txt", "shards"
PLAN = "plan.json"  # in the unfinished folder: describes the shards
SPARE_BYTES = 64 * 2**20  # space for the index, the manifest and the file system's blocks

# Shard and offset (pixels) of an image; its stored rows and columns; its rectangle inside the
# frame.
INDEX = np.dtype(
    [("shard", "i4"), ("offset", "i8"), ("rows", "i4"), ("columns", "i4"), ("top", "i4"), ("left", "i4"),
     ("inner_rows", "i4"), ("inner_columns", "i4"), ("labelled", "?"), ("held_out", "?")]
)  # fmt: skip


def options_for(protocol: Protocol, given: dict) -> Options:
    """The options with the given values.

    Raises:
        DataError: an option does not apply to the protocol, or is out of range.
    """
    known = OPTIONS_OF[protocol.source]
    for name in given:
        if name not in known:
            raise DataError(f"--{name.replace('_', '-')} does not apply to {protocol.name}; leave it out")
    options = dataclasses.replace(Options(), **given)
    for name, choices in (("partition", PARTITIONS), ("unlabelled", UNLABELLED), ("crowd", CROWDS)):
        if getattr(options, name) not in choices:
            raise DataError(f"--{name} must be one of {', '.join(choices)}, not {getattr(options, name)!r}")
    for name in ("split_seed", "min_side"):
        if getattr(options, name) < 0:
            raise DataError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(options, name)}")
    if not 0 <= options.person_min <= options.person_max <= 1:
        raise DataError(f"--person-min and --person-max must be 0 <= {options.person_min} <= {options.person_max} <= 1")
    return options


def prepare(
    name: str,
    root: Path,
    out: Path | None,
    given: dict | None = None,
    *,
    check: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict:
    """Verify a raw download, and write it to `out` unless `check`.

    Args:
        name: a name of PROTOCOLS.
        root: folder of the raw download.
        out: the folder to be made. None only with `check`.
        given: `Options` that differ from the defaults.
        check: read and verify every file, and write nothing.
        workers: number of processes. None: number of cores.
        progress: whether to show progress bars.

    Returns:
        The manifest, with `check` without the hashes of the shards.

    Raises:
        DataError: a file is missing or is not the protocol's, and the text says where to get it; an
            option is wrong, or `out` exists or cannot be written. Finished shards stay in the
            unfinished folder, and the same command continues there.
    """
    protocol = PROTOCOLS[name]
    reader = READERS[protocol.source]
    options = options_for(protocol, given or {})
    if not check:
        require_new(out)
    if not root.is_dir():
        raise DataError(f"--root {root} is not a folder; it is where the raw download was unpacked")
    workers = workers or len(os.sched_getaffinity(0))

    raw = reader.find(protocol, options, root)
    scratch = None if check else out.with_name(f".{out.name}.partial")
    locked = contextlib.nullcontext() if check else FolderLock(out, "prepare", scratch)
    with locked as lock, Pool(workers, progress) as pool:
        if not check:
            lock.take()
            require_new(out)  # the call that held the lock before may have made it
        sizes = pool.over_items(measure, (protocol,), raw.items, "headers")
        if protocol.source == "coco-persons":
            raw, sizes = _selected(pool, protocol, options, raw, sizes)
        index, groups = plan(protocol, raw, sizes)
        manifest = manifest_of(protocol, options, raw, index)
        if check:
            _convert(pool, protocol, options, raw, index, groups, None, "checking")
            return manifest
        return _write(pool, protocol, options, raw, index, groups, manifest, out, scratch)


def measure(protocol: Protocol, items: list) -> list[tuple[int, int]]:
    reader = READERS[protocol.source]
    return [reader.measure(protocol, item) for item in items]


def person_shares(protocol: Protocol, options: Options, items: list) -> list[float]:
    return [persons.person_share(protocol, options, item) for item in items]


def _selected(pool: Pool, protocol: Protocol, options: Options, raw: Raw, sizes: list) -> tuple[Raw, list]:
    """The candidates of COCO-Persons whose share of persons is in range, and their sizes."""
    shares = pool.over_items(person_shares, (protocol, options), raw.items, "persons")
    kept = [i for i, share in enumerate(shares) if options.person_min <= share <= options.person_max]
    if not kept:
        raise DataError(
            f"none of {len(shares)} candidate images has a share of persons from --person-min {options.person_min} to "
            f"--person-max {options.person_max}"
        )
    lists = {name: [getattr(raw, name)[i] for i in kept]
             for name in ("items", "stems", "parts", "labelled", "held_out")}  # fmt: skip
    selection = (
        f"{len(kept):,} images with a person that is no crowd, no side below {options.min_side} px, persons "
        f"{options.person_min:g} to {options.person_max:g} of the scored window, crowds as {options.crowd}"
    )
    return dataclasses.replace(raw, **lists, selection=selection), [sizes[i] for i in kept]


def plan(protocol: Protocol, raw: Raw, sizes: list[tuple[int, int]]) -> tuple[np.ndarray, list[range]]:
    """The place of each image (INDEX records), and the range of items of each shard."""
    window = protocol.window
    groups = [range(i, min(i + raw.per_shard, len(raw.items))) for i in range(0, len(raw.items), raw.per_shard)]
    index = np.zeros(len(raw.stems), dtype=INDEX)
    inner = np.array(sizes, dtype=np.int64).repeat(raw.per_item, axis=0)
    stored = np.maximum(inner, window)
    # The protocol places the centre of a smaller image (rounded down) on the centre of the frame.
    corner = stored // 2 - inner // 2
    for column, values in (
        ("rows", stored[:, 0]), ("columns", stored[:, 1]), ("top", corner[:, 0]), ("left", corner[:, 1]),
        ("inner_rows", inner[:, 0]), ("inner_columns", inner[:, 1]), ("labelled", raw.labelled),
        ("held_out", raw.held_out),
    ):  # fmt: skip
        index[column] = values
    pixels = stored.prod(axis=1)
    for shard, group in enumerate(groups):
        images = slice(group.start * raw.per_item, group.stop * raw.per_item)
        index["shard"][images] = shard
        index["offset"][images] = np.cumsum(pixels[images]) - pixels[images]
    return index, groups


def manifest_of(protocol: Protocol, options: Options, raw: Raw, index: np.ndarray) -> dict:
    """The manifest without its shards."""
    relevant = OPTIONS_OF[protocol.source]
    return {
        "format": FORMAT,
        "protocol": asdict(protocol),
        "options": {name: value for name, value in asdict(options).items() if name in relevant},
        "selection": raw.selection,
        "notes": raw.notes,
        "images": len(index),
        "labelled": int(index["labelled"].sum()),
        "held_out": int(index["held_out"].sum()),
        "parts": {part: raw.parts.count(part) for part in dict.fromkeys(raw.parts)},
        "framed": int(((index["rows"] > index["inner_rows"]) | (index["columns"] > index["inner_columns"])).sum()),
        "stems_sha256": hashlib.sha256("\n".join(raw.stems).encode()).hexdigest(),
        "sources": raw.sources,
        "resizing": "OpenCV's INTER_LINEAR and INTER_NEAREST; images stored RGB, rounded to 8 bits",
        "versions": {name: versions()[name] for name in ("python", "infoseg-fast", "numpy", "pillow")},
    }


def _write(pool, protocol, options, raw, index, groups, manifest, out: Path, scratch: Path) -> dict:
    """Write the missing shards, then index and manifest, and rename the folder."""
    key = (
        json.dumps(manifest | {"sizes": hashlib.sha256(index.tobytes()).hexdigest()}, sort_keys=True) + "\n"
    ).encode()
    try:
        if not _same_plan(scratch / PLAN, key):
            clear(scratch)
        (scratch / SHARDS).mkdir(exist_ok=True)
        write_atomically(scratch / PLAN, key)
        done = {shard: record for shard in range(len(groups)) if (record := _finished(scratch, shard)) is not None}
        pixels = np.bincount(index["shard"], index["rows"].astype(np.int64) * index["columns"], len(groups))
        left = int(sum(pixels[shard] for shard in range(len(groups)) if shard not in done)) * (protocol.channels + 1)
        free = shutil.disk_usage(scratch).free
        if left + SPARE_BYTES > free:
            if not done:
                shutil.rmtree(scratch)
            raise DataError(
                f"--out {out} needs {(left + SPARE_BYTES) / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there"
            )
        records = done | _convert(pool, protocol, options, raw, index, groups, scratch / SHARDS, "preparing", done)
        manifest = manifest | {"shards": [records[shard] for shard in range(len(groups))]}
        np.save(scratch / INDEX_FILE, index)
        manifest["index_sha256"] = hashlib.sha256((scratch / INDEX_FILE).read_bytes()).hexdigest()
        write_atomically(scratch / STEMS, ("\n".join(raw.stems) + "\n").encode())
        write_atomically(scratch / CLASSES, ("\n".join(protocol.classes) + "\n").encode())
        for path in [scratch / PLAN, *(scratch / SHARDS).glob("*.json")]:
            path.unlink()
        # The manifest is last, because it makes the folder a set.
        write_atomically(scratch / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        os.rename(scratch, out)
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror or error}") from error
    return manifest


def _same_plan(path: Path, key: bytes) -> bool:
    try:
        return path.read_bytes() == key
    except OSError:
        return False


def shard_paths(folder: Path, shard: int) -> tuple[Path, Path]:
    return folder / f"{shard:05d}.images", folder / f"{shard:05d}.labels"


def _finished(scratch: Path, shard: int) -> dict | None:
    """The record of a complete shard, which is written after the shard. None: it is not complete."""
    images, labels = shard_paths(scratch / SHARDS, shard)
    try:
        record = json.loads(images.with_suffix(".json").read_text())
        whole = images.stat().st_size == record["image_bytes"] and labels.stat().st_size == record["label_bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return record if whole else None


def _convert(pool, protocol, options, raw, index, groups, folder, description, done=()) -> dict[int, dict]:
    """Convert the shards that are not in `done`. Returns their records."""
    tasks = [
        (shard, (protocol, options, [raw.items[i] for i in group],
                 index[group.start * raw.per_item : group.stop * raw.per_item], folder, shard))
        for shard, group in enumerate(groups) if shard not in done
    ]  # fmt: skip
    records = {}
    already = sum(len(groups[shard]) for shard in done) * raw.per_item
    with tqdm(total=len(index), initial=already, unit="image", desc=description, disable=pool.bar_disabled) as bar:
        for shard, record in pool.run(convert, tasks):
            records[shard] = record
            bar.update(len(groups[shard]) * raw.per_item)
    return records


def convert(
    protocol: Protocol, options: Options, items: list, index: np.ndarray, folder: Path | None, shard: int
) -> dict:
    """Read the images of a shard, and write them with their frames to `folder` (None: only read).
    Runs in a worker process.

    Returns:
        The record of the shard: bytes and sha256 of its two files, and sha256 of the raw files.
    """
    reader, source = READERS[protocol.source], hashlib.sha256()
    places = iter(index)
    if folder is None:
        for item in items:
            for pixels, _ in reader.read(protocol, options, item, source):
                _require_planned(pixels, next(places), item)
        return {"source_sha256": source.hexdigest()}
    paths = shard_paths(folder, shard)
    digests, sizes = [hashlib.sha256(), hashlib.sha256()], [0, 0]
    with open(paths[0], "wb") as images, open(paths[1], "wb") as labels:
        for item in items:
            for pixels, label in reader.read(protocol, options, item, source):
                place = next(places)
                _require_planned(pixels, place, item)
                for n, (file, array, fill) in enumerate(((images, pixels, 0), (labels, label[None], IGNORE))):
                    data = framed(array, place, fill)
                    file.write(data)
                    digests[n].update(data)
                    sizes[n] += data.nbytes
        for file in (images, labels):
            file.flush()
            os.fsync(file.fileno())
    record = {
        "image_bytes": sizes[0], "image_sha256": digests[0].hexdigest(),
        "label_bytes": sizes[1], "label_sha256": digests[1].hexdigest(), "source_sha256": source.hexdigest(),
    }  # fmt: skip
    write_atomically(paths[0].with_suffix(".json"), json.dumps(record).encode())
    return record


def _require_planned(pixels: np.ndarray, place: np.void, item: tuple) -> None:
    if pixels.shape[1:] != (place["inner_rows"], place["inner_columns"]):
        raise DataError(f"image {item[0]} changed while it was read; run the command again")


def framed(array: np.ndarray, place: np.void, fill: int) -> np.ndarray:
    """An image [c, rows, columns] inside its frame of `fill`, contiguous."""
    if array.shape[1:] == (place["rows"], place["columns"]):
        return np.ascontiguousarray(array)
    whole = np.full((len(array), place["rows"], place["columns"]), fill, dtype=np.uint8)
    top, left = place["top"], place["left"]
    whole[:, top : top + array.shape[1], left : left + array.shape[2]] = array
    return whole
