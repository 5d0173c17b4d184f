"""Miniature raw downloads in the official formats, and protocols that fit them."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from infoseg_fast.data.protocols import PALETTE, PROTOCOLS, ImageList, Protocol

WINDOW = 24  # instead of 128
# Odd sizes, and sides below the window after scaling by 0.33.
COCO_SIZES = {"train2017": [(90, 121), (75, 100), (60, 200), (72, 73), (99, 76)], "val2017": [(73, 97), (81, 64)]}
LIST_NAME = "Mini_List_1"


def textured(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    waves = [127 + 90 * np.sin(x / rng.uniform(3, 9) + y / rng.uniform(3, 9)) for _ in range(3)]
    return (np.stack(waves, -1) + rng.normal(0, 9, (rows, columns, 3))).clip(0, 255).astype(np.uint8)


def write_coco(root: Path) -> dict[str, list[str]]:
    """images/, annotations/ and curated/ with one image more than the list names; the listed stems
    of each part.

    Among them: odd sizes, sides below the window after scaling, a grey JPEG, a palette PNG.
    """
    rng = np.random.default_rng(0)
    listed = {}
    for part, sizes in COCO_SIZES.items():
        for folder in ("images", "annotations", "curated"):
            (root / folder / part).mkdir(parents=True)
        listed[part] = []
        for number, (rows, columns) in enumerate([*sizes, (70, 80)]):
            stem = f"{(1 + number) * 1000 + len(part):012d}"
            image = Image.fromarray(textured(rng, rows, columns))
            image = image.convert("L") if number == 1 else image
            image.save(root / "images" / part / f"{stem}.jpg", quality=90)
            # Regions of the commoner values, and single pixels of any.
            regions = rng.choice([255, 156, 156, 123, 110, 0, 170, 95], (rows // 24 + 1, columns // 24 + 1))
            fine = regions.repeat(24, 0).repeat(24, 1)[:rows, :columns]
            fine = np.where(rng.random((rows, columns)) < 0.02, rng.integers(0, 182, (rows, columns)), fine)
            label = Image.fromarray(fine.astype(np.uint8))
            if number == 2:
                label = label.convert("P")
                label.putpalette(rng.integers(0, 256, 768).tolist())
                label.putdata(fine.astype(np.uint8).ravel().tolist())
            label.save(root / "annotations" / part / f"{stem}.png")
            if number < len(sizes):
                listed[part].append(stem)
        (root / "curated" / part / f"{LIST_NAME}.txt").write_text("".join(f"{stem}\n" for stem in listed[part]))
    return listed


def mini_coco(name: str, root: Path) -> Protocol:
    """The protocol with the lists that are there now, and a small window."""
    lists = []
    for part in COCO_SIZES:
        data = (root / "curated" / part / f"{LIST_NAME}.txt").read_bytes()
        lists.append(ImageList(part, LIST_NAME, len(data.split()), hashlib.sha256(data).hexdigest()))
    return dataclasses.replace(PROTOCOLS[name], window=WINDOW, lists=tuple(lists))


def rle(mask: np.ndarray) -> dict:
    """Uncompressed run lengths of a mask, column by column, beginning with zeros."""
    flat = mask.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def write_persons(root: Path) -> dict[str, np.ndarray]:
    """images/ and annotations/instances_*.json; of each image id that COCO-Persons may take, who is
    where.

    Polygons along pixel borders, so that their masks are known without a rasteriser; a crowd as run
    lengths.
    """
    rng, truth = np.random.default_rng(1), {}
    for p, part in enumerate(("train2017", "val2017")):
        (root / "images" / part).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []

        def annotate(image: int, segmentation, crowd: int = 0, category: int = 1, into=annotations) -> None:
            into.append({
                "id": len(into), "image_id": image, "category_id": category, "iscrowd": crowd,
                "segmentation": segmentation, "area": 1.0, "bbox": [0, 0, 1, 1],
            })  # fmt: skip

        for number in range(6):
            image, (rows, columns) = 10 * (p + 1) + number, [(80, 100), (90, 81)][number % 2]
            name = f"{image:012d}.jpg"
            rows = 20 if number == 5 else rows  # too small
            Image.fromarray(textured(rng, rows, columns)).save(root / "images" / part / name)
            images.append({"id": image, "file_name": name, "height": rows, "width": columns, "license": 1})
            mask = np.zeros((rows, columns), dtype=np.uint8)
            if number in (0, 1, 5):  # two boxes of persons, and a dog over one of them
                for top, left, bottom, right in ((10, 20, rows - 10, 50), (5, 60, 40, 70)):
                    bottom = min(bottom, rows)
                    annotate(image, [[left, top, right, top, right, bottom, left, bottom]])
                    mask[top:bottom, left:right] = 1
                annotate(image, [[0, 0, 9, 0, 9, 9, 0, 9]], category=18)
            if number == 1:  # and a crowd, in part over a person
                crowd = np.zeros_like(mask)
                crowd[30:60, 40:80] = 1
                annotate(image, rle(crowd), crowd=1)
                mask[(crowd == 1) & (mask == 0)] = 2
            if number == 2:  # nothing but a crowd
                annotate(image, rle(np.ones_like(mask)), crowd=1)
            if number == 3:  # persons that fill the window
                annotate(image, [[0, 0, columns, 0, columns, rows, 0, rows]])
            if number in (0, 1):
                truth[f"{part}/{name[:-4]}"] = mask
        (root / "annotations" / f"instances_{part}.json").write_text(
            json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": []})
        )
    return truth


def mini_persons() -> Protocol:
    return dataclasses.replace(PROTOCOLS["coco-persons"], window=WINDOW)


TILE, PATCH = 48, 8
TILES = ("top_potsdam_2_10", "top_potsdam_4_12", "top_potsdam_7_13")  # the last without labels


def write_potsdam(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """GeoTIFF tiles as the ISPRS has them, LZW and tiled among them: of each its pixels and its
    palette rows.
    """
    import tifffile

    rng, truth = np.random.default_rng(2), {}
    geo = [(33550, "d", 3, (0.05, 0.05, 0.0), True), (33922, "d", 6, (0, 0, 0, 366976.0, 5808050.0, 0), True)]
    for folder in ("4_Ortho_RGBIR", "5_Labels_for_participants"):
        (root / folder).mkdir(parents=True)
    for number, tile in enumerate(TILES):
        pixels = rng.integers(0, 256, (TILE, TILE, 4), dtype=np.uint8)
        layout = [{}, {"compression": "lzw", "tile": (16, 16)}, {"compression": "lzw", "rowsperstrip": 5}][number]
        tifffile.imwrite(
            root / "4_Ortho_RGBIR" / f"{tile}_RGBIR.tif", pixels, photometric="rgb", extratags=geo, **layout
        )
        rows = None
        if number < 2:
            rows = rng.integers(0, 6, (TILE, TILE))
            colours = np.array(list(PALETTE), dtype=np.uint8)[rows]
            path = root / "5_Labels_for_participants" / f"{tile}_label.tif"
            tifffile.imwrite(path, colours, photometric="rgb", extratags=geo, **layout)
        truth[tile] = pixels, rows
    return truth


def write_potsdam_mat(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """The ready-made archive: MATLAB 5 files and three lists."""
    rng, truth = np.random.default_rng(3), {}
    for folder in ("imgs", "gt"):
        (root / folder).mkdir(parents=True)
    side = (TILE // 2 // PATCH) ** 2
    lists = {"unlabelled_train": side, "labelled_train": 2 * side - 4, "labelled_test": 4}
    numbers = iter(rng.permutation(3 * side))
    for name, number in lists.items():
        stems = [str(n) for n in itertools.islice(numbers, number)]
        (root / f"{name}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            pixels = rng.integers(0, 256, (PATCH, PATCH, 4), dtype=np.uint8)
            scipy.io.savemat(root / "imgs" / f"{stem}.mat", {"img": pixels})
            rows = None
            if name != "unlabelled_train":
                rows = rng.integers(0, 6, (PATCH, PATCH)).astype(np.int32)
                scipy.io.savemat(root / "gt" / f"{stem}.mat", {"gt": rows})
            truth[stem] = pixels, rows
    (root / "debugged.out").write_text("")
    return truth


def mini_potsdam(name: str) -> Protocol:
    return dataclasses.replace(
        PROTOCOLS[name], window=PATCH, patch=PATCH, tile_side=TILE, tiles=3, labelled_tiles=2, held_out=4
    )
