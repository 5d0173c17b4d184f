"""`infoseg prepare`: raw downloads in the official formats become sets whose every value is the
protocol's.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_downloads import (
    LIST_NAME,
    PATCH,
    TILES,
    WINDOW,
    mini_coco,
    mini_persons,
    mini_potsdam,
    write_coco,
    write_persons,
    write_potsdam,
    write_potsdam_mat,
)
from test_data import refused

from infoseg_fast.cli import main
from infoseg_fast.data import open_set, prepare, resize, workers
from infoseg_fast.data.protocols import PROTOCOLS
from infoseg_fast.errors import DataError
from infoseg_fast.scores.evaluate import score


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """A raw COCO-Stuff download, with the two protocols made to fit it."""
    root = tmp_path / "raw"
    write_coco(root)
    for name in ("coco-stuff-15", "coco-stuff-3"):
        monkeypatch.setitem(PROTOCOLS, name, mini_coco(name, root))
    return root


@pytest.fixture
def potsdam(tmp_path, monkeypatch):
    for name in ("potsdam-6", "potsdam-3"):
        monkeypatch.setitem(PROTOCOLS, name, mini_potsdam(name))
    return tmp_path / "raw"


@pytest.fixture
def people(tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "coco-persons", mini_persons())
    return tmp_path / "raw"


def prepared(name: str, root: Path, workers: int = 1, **given) -> Path:
    out = root.parent / f"{name}-{len(list(root.parent.iterdir()))}"
    prepare.prepare(name, root, out, given, workers=workers, progress=False)
    return out


def faulty(name: str, root: Path, *told: str, **given) -> None:
    """Both preparing and checking refuse, with one line that tells; nothing appears under the name."""
    for check in (False, True):
        out = root.parent / "refused"
        refused(
            lambda out=out, check=check: prepare.prepare(
                name, root, out, given, check=check, workers=1, progress=False
            ),
            *told,
        )
        assert not out.exists()


# The protocols again, slowly and value by value


SCALE = 0.33


def stated_pixel(pixels: np.ndarray, row: int, column: int) -> np.ndarray:
    """INTER_LINEAR at one output position, in float64."""

    def taps(position: int, n: int) -> tuple[int, int, float]:
        at = (position + 0.5) / SCALE - 0.5
        if at < 0:
            return 0, 0, 0.0
        if at >= n - 1:
            return n - 1, n - 1, 0.0
        return math.floor(at), math.floor(at) + 1, at - math.floor(at)

    r0, r1, wr = taps(row, pixels.shape[0])
    c0, c1, wc = taps(column, pixels.shape[1])
    p = pixels.astype(float)
    return (p[r0, c0] * (1 - wc) + p[r0, c1] * wc) * (1 - wr) + (p[r1, c0] * (1 - wc) + p[r1, c1] * wc) * wr


def stated_window(pixels: np.ndarray, fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre window of a COCO image: its pixels as floats, and its raw labels, -1 on the frame."""
    rows, columns = (round(n * SCALE) for n in fine.shape)
    framed_rows, framed_columns = max(rows, WINDOW), max(columns, WINDOW)
    down, across = int(framed_rows / 2) - int(rows / 2), int(framed_columns / 2) - int(columns / 2)
    top, left = int(framed_rows / 2) - WINDOW // 2, int(framed_columns / 2) - WINDOW // 2
    values, labels = np.zeros((WINDOW, WINDOW, 3)), np.full((WINDOW, WINDOW), -1)
    for y in range(WINDOW):
        for x in range(WINDOW):
            row, column = top + y - down, left + x - across
            if 0 <= row < rows and 0 <= column < columns:
                values[y, x] = stated_pixel(pixels, row, column)
                labels[y, x] = fine[int(row / SCALE), int(column / SCALE)]
    return values, labels


def stated_class(name: str, fine: int, unlabelled: str) -> int:
    """Class of a COCO-Stuff value by the benchmark's definition in words, 255 for none."""
    if fine == -1:
        return 255  # the frame is "person" in the published code
    if fine == 255:
        return 0 if name == "coco-stuff-3" and unlabelled == "iic" else 255
    for label, members in enumerate(PROTOCOLS[name].values):
        if fine in members:
            return label
    return 255


@pytest.mark.parametrize("unlabelled", ["ignore", "iic"])
@pytest.mark.parametrize("name", ["coco-stuff-15", "coco-stuff-3"])
def test_coco_stuff_is_the_stated_protocol_value_by_value(coco, name, unlabelled):
    found = open_set(str(prepared(name, coco, unlabelled=unlabelled)), "eval")
    assert found.classes == list(PROTOCOLS[name].classes) and found.num_classes in (3, 15)
    assert len(found) == 7 and found.stems[0].startswith("train2017/") and found.sizes == [(WINDOW, WINDOW)] * 7
    for i, stem in enumerate(found.stems):
        pixels = np.asarray(Image.open(coco / "images" / f"{stem}.jpg").convert("RGB"))
        fine = np.asarray(Image.open(coco / "annotations" / f"{stem}.png")).astype(int)
        values, labels = stated_window(pixels, fine)
        assert np.abs(found.image(i).transpose(1, 2, 0) - values).max() <= 0.51
        stated = np.array([[stated_class(name, value, unlabelled) for value in row] for row in labels])
        assert np.array_equal(found.label(i), stated)


def test_training_takes_whole_images_and_the_frame_is_not_valid(coco):
    found = open_set(str(prepared("coco-stuff-15", coco)), "train")
    small = found.stems.index("train2017/000000003009")  # 60 x 200 pixels: 20 x 66 after scaling
    assert found.sizes[small] == (WINDOW, 66) and found.crop_side == WINDOW
    half = np.full(len(found), 0.5)
    images, valid = found.crops(np.arange(len(found)), half, half, WINDOW)
    slow = super(type(found), found).crops(np.arange(len(found)), half, half, WINDOW)[0]
    assert np.array_equal(images, slow)
    assert valid[small, 2:22].all() and not valid[small, :2].any() and not valid[small, 22:].any()
    assert not images[small][:, ~valid[small]].any()
    labels = found.label(small)
    _, counted = found.crops(np.array([small]), np.zeros(1), np.zeros(1), WINDOW, labelled=True)
    assert np.array_equal(counted[0], labels[:, :WINDOW] != 255)


def test_opencv_gives_the_same_pixels():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for size in ((480, 640), (427, 640), (361, 481), (97, 131), (50, 3)):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        theirs = cv2.resize(pixels.astype(np.float32), None, fx=0.33, fy=0.33, interpolation=cv2.INTER_LINEAR)
        assert np.abs(resize.linear(pixels, 0.33) - theirs).max() <= 0.51
        labels = pixels[..., 0].astype(np.int32)
        theirs = cv2.resize(labels, None, fx=0.33, fy=0.33, interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(resize.nearest(labels, 0.33), theirs)
    tile = rng.integers(0, 256, (120, 80, 4), dtype=np.uint8)
    theirs = cv2.resize(tile, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resize.halved(tile), theirs)


@pytest.mark.parametrize("name", ["potsdam-6", "potsdam-3"])
def test_potsdam_is_the_stated_protocol_value_by_value(potsdam, name):
    truth = write_potsdam(potsdam)
    root = prepared(name, potsdam)
    every, scored = open_set(str(root), "train"), open_set(str(root), "eval")
    assert len(every) == 27 and len(scored) == 18 and every.channels == 4
    assert every.stems[:4] == [f"{TILES[0]}_00_00", f"{TILES[0]}_00_01", f"{TILES[0]}_00_02", f"{TILES[0]}_01_00"]
    assert scored.stems == [stem for stem in every.stems if not stem.startswith(TILES[2])]
    potsdam3 = {0: 0, 1: 1, 2: 2, 3: 2, 4: 0, 5: 1}
    for i, stem in enumerate(every.stems):
        tile, row, column = stem.rsplit("_", 2)
        pixels, rows = truth[tile]
        image, label = every.image(i), every.label(i)
        for y in range(PATCH):
            for x in range(PATCH):
                r, c = 2 * (int(row) * PATCH + y), 2 * (int(column) * PATCH + x)
                block = pixels[r : r + 2, c : c + 2].reshape(4, 4).astype(int)
                assert image[:, y, x].tolist() == [(total + 2) // 4 for total in block.sum(0)]
                known = 255 if rows is None else int(rows[r, c])
                assert label[y, x] == (potsdam3.get(known, 255) if name == "potsdam-3" else known)


def test_the_ready_made_potsdam_archive_gives_its_patches(potsdam):
    truth = write_potsdam_mat(potsdam)
    root = prepared("potsdam-3", potsdam)
    every = open_set(str(root), "train")
    assert len(every) == 27 and len(open_set(str(root), "eval")) == 18
    assert open_set(str(root), "val").stems == (potsdam / "labelled_test.txt").read_text().split()
    table = np.array([0, 1, 2, 2, 0, 1])
    for i, stem in enumerate(every.stems):
        pixels, rows = truth[stem]
        assert np.array_equal(every.image(i), pixels.transpose(2, 0, 1))
        assert np.array_equal(every.label(i), np.full((PATCH, PATCH), 255) if rows is None else table[rows])


@pytest.mark.parametrize("crowd", ["person", "ignore"])
def test_coco_persons_takes_the_selected_images_and_their_masks(people, crowd):
    truth = write_persons(people)
    root = prepared("coco-persons", people, min_side=40, crowd=crowd)
    found = open_set(str(root), "eval")
    assert found.stems == sorted(truth) and found.classes == ["background", "person"]
    for i, stem in enumerate(found.stems):
        mask = truth[stem]
        pixels = np.asarray(Image.open(people / "images" / f"{stem}.jpg").convert("RGB"))
        values, labels = stated_window(pixels, mask)
        assert np.abs(found.image(i).transpose(1, 2, 0) - values).max() <= 0.51
        meaning = {-1: 255, 0: 0, 1: 1, 2: 1 if crowd == "person" else 255}
        assert np.array_equal(found.label(i), np.vectorize(meaning.get)(labels))
    assert len(open_set(str(root), "val")) == 2
    told = found.manifest["selection"]
    assert "4 images" in told and "0.1 to 0.9" in told and f"crowds as {crowd}" in told


# Partitions and options


def test_iid_plus_scores_on_other_images_than_it_trains_on(coco, potsdam):
    root = prepared("coco-stuff-3", coco, partition="iid+")
    train, scored = (open_set(str(root), split) for split in ("train", "eval"))
    assert {stem.split("/")[0] for stem in train.stems} == {"train2017"} and len(train) == 5
    assert {stem.split("/")[0] for stem in scored.stems} == {"val2017"} and len(open_set(str(root), "all")) == 7
    shutil.rmtree(potsdam)
    write_potsdam(potsdam)
    splits = {}
    for seed in (0, 0, 1):
        root = prepared("potsdam-6", potsdam, partition="iid+", split_seed=seed)
        train, scored = (open_set(str(root), split).stems for split in ("train", "eval"))
        assert len(train) == 23 and len(scored) == 4 and not set(train) & set(scored)
        assert splits.setdefault(seed, scored) == scored
    assert splits[0] != splits[1]


def test_an_option_that_means_nothing_is_refused(coco):
    faulty("coco-stuff-15", coco, "--min-side", "coco-stuff-15", min_side=3)
    faulty("coco-stuff-15", coco, "--partition", "iid+", partition="all")
    faulty("coco-persons", coco, "--person-min", person_min=0.7, person_max=0.2)


# Faults of a download, each named


def test_a_missing_list_image_label_or_folder(coco):
    path = coco / "curated/val2017" / f"{LIST_NAME}.txt"
    content = path.read_text()
    path.unlink()
    faulty("coco-stuff-15", coco, str(path), "missing", "COCOStuff164kCurated")
    path.write_text(content)
    label = coco / "annotations/train2017/000000002009.png"
    label.rename(coco / "kept.png")
    faulty("coco-stuff-15", coco, "label", str(label), "1 of 5", "stuffthingmaps_trainval2017.zip")
    (coco / "kept.png").rename(label)
    image = coco / "images/val2017/000000001007.jpg"
    image.unlink()
    faulty("coco-stuff-15", coco, "image", str(image), "val2017.zip")
    shutil.rmtree(coco / "images/train2017")
    faulty("coco-stuff-15", coco, "images/train2017 is missing", "train2017.zip")
    refused(lambda: prepare.prepare("coco-stuff-3", coco / "none", coco / "out"), "--root", "none")


def test_a_list_that_repeats_lacks_or_changes_an_id(coco):
    path = coco / "curated/train2017" / f"{LIST_NAME}.txt"
    lines = path.read_text().splitlines()
    for changed, told in (
        ([*lines, lines[0]], f"names {lines[0]} twice"),
        (lines[:-1], "names 4 images, the protocol's 5"),
        ([*lines[:-1], "000000006009"], "sha256"),
    ):
        path.write_text("\n".join(changed) + "\n")
        faulty("coco-stuff-15", coco, str(path), told, "COCOStuff164kCurated")


@pytest.mark.parametrize("file", ["images/train2017/000000001009.jpg", "annotations/train2017/000000001009.png"])
def test_a_truncated_file(coco, file):
    path = coco / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    faulty("coco-stuff-15", coco, str(path), "damaged", "get it again from http")
    path.write_bytes(b"")
    faulty("coco-stuff-15", coco, str(path), "damaged")


def test_a_label_of_another_size_mode_or_value(coco):
    path = coco / "annotations/val2017/000000001007.png"
    label = np.asarray(Image.open(path))
    Image.fromarray(label[:, :-1]).save(path)
    faulty("coco-stuff-15", coco, str(path), "96 x 73", "97 x 73")
    Image.fromarray(np.repeat(label[..., None], 3, axis=2)).save(path)
    faulty("coco-stuff-15", coco, str(path), "mode RGB")
    Image.fromarray(np.full_like(label, 200)).save(path)
    faulty("coco-stuff-15", coco, str(path), "holds 200", "0 to 181")


def test_the_blended_potsdam_tile_is_named(potsdam):
    import tifffile

    write_potsdam(potsdam)
    path = potsdam / "5_Labels_for_participants/top_potsdam_4_12_label.tif"
    blended = tifffile.imread(path)
    blended[3, 5] = (255, 128, 0)
    tifffile.imwrite(path, blended, photometric="rgb", compression="lzw")
    faulty("potsdam-6", potsdam, str(path), "(255, 128, 0)", "5_Labels_all.zip", "isprs.org")
    blended[3, 5] = (255, 0, 255)  # pure, but no class's
    tifffile.imwrite(path, blended, photometric="rgb")
    faulty("potsdam-6", potsdam, "(255, 0, 255)")


def test_potsdam_tiles_that_are_missing_damaged_or_of_another_size(potsdam, monkeypatch):
    import tifffile

    from infoseg_fast.data import potsdam as reader

    write_potsdam(potsdam)
    monkeypatch.setattr(reader, "GRID", {2: [10], 4: [12], 7: [13]})
    image = potsdam / "4_Ortho_RGBIR/top_potsdam_7_13_RGBIR.tif"
    content = image.read_bytes()
    image.unlink()
    faulty("potsdam-6", potsdam, "2 tiles, the protocol 3 (missing: 7_13)", "4_Ortho_RGBIR.zip")
    image.write_bytes(content[: len(content) // 2])
    faulty("potsdam-6", potsdam, str(image), "damaged")
    tifffile.imwrite(image, np.zeros((50, 50, 4), np.uint8), photometric="rgb")
    faulty("potsdam-6", potsdam, str(image), "50 x 50 x 4", "48 x 48 x 4")
    image.write_bytes(content)
    (potsdam / "4_Ortho_RGBIR/._top_potsdam_7_13_RGBIR.tif").write_bytes(b"hidden, of another system")
    prepare.prepare("potsdam-6", potsdam, None, check=True, workers=1, progress=False)
    stray = potsdam / "5_Labels_for_participants/top_potsdam_9_9_label.tif"
    shutil.copy(potsdam / "5_Labels_for_participants/top_potsdam_2_10_label.tif", stray)
    faulty("potsdam-6", potsdam, str(stray), "has no image")
    stray.unlink()
    shutil.rmtree(potsdam / "5_Labels_for_participants")
    faulty("potsdam-6", potsdam, "5_Labels_for_participants is missing", "isprs.org")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (potsdam / "5_Labels_for_participants").mkdir()
    faulty("potsdam-6", potsdam, "tifffile", "infoseg-fast[benchmarks]")


def test_faults_of_the_potsdam_archive(potsdam):
    import scipy.io

    write_potsdam_mat(potsdam)
    stem = (potsdam / "labelled_train.txt").read_text().split()[0]
    gt, image = potsdam / "gt" / f"{stem}.mat", potsdam / "imgs" / f"{stem}.mat"
    content = gt.read_bytes()
    scipy.io.savemat(gt, {"gt": np.full((PATCH, PATCH), 6, np.int32)})
    faulty("potsdam-6", potsdam, str(gt), "0 to 5")
    scipy.io.savemat(gt, {"ground_truth": np.zeros((PATCH, PATCH), np.int32)})
    faulty("potsdam-6", potsdam, str(gt), "no 'gt'", "Potsdam.tar.gz")
    gt.unlink()
    faulty("potsdam-6", potsdam, "label", str(gt), "missing")
    gt.write_bytes(content)
    scipy.io.savemat(image, {"img": np.zeros((PATCH, PATCH, 3), np.uint8)})
    faulty("potsdam-6", potsdam, str(image), "8 x 8 x 3", "8 x 8 x 4")
    image.write_bytes(image.read_bytes()[:100])
    faulty("potsdam-6", potsdam, str(image), "damaged")
    listed = potsdam / "labelled_test.txt"
    lines = listed.read_text()
    listed.write_text(lines + stem + "\n")
    faulty("potsdam-6", potsdam, stem, "twice")
    listed.write_text("\n".join(lines.split()[1:]))
    faulty("potsdam-6", potsdam, "26 patches, the protocol has 27", "Potsdam.tar.gz")
    listed.unlink()
    faulty("potsdam-6", potsdam, str(listed), "missing")


def test_faults_of_the_persons_annotations(people, monkeypatch):
    write_persons(people)
    path = people / "annotations/instances_val2017.json"
    whole = path.read_text()

    def changed(change) -> None:
        content = json.loads(whole)
        change(content)
        path.write_text(json.dumps(content))

    path.write_text(whole[: len(whole) // 2])
    faulty("coco-persons", people, str(path), "damaged", "annotations_trainval2017.zip")
    changed(lambda content: content["images"].append(content["images"][0]))
    faulty("coco-persons", people, "image id 20 twice")
    for key, value in (("height", "80"), ("height", 80.0), ("width", None), ("file_name", 5)):
        changed(lambda content, key=key, value=value: content["images"][0].update({key: value}))
        faulty("coco-persons", people, str(path), "damaged", "TypeError")
    changed(lambda content: content["annotations"][0].update(image_id=99))
    faulty("coco-persons", people, "image 99")
    changed(lambda content: content["images"][0].update(height=81))
    faulty("coco-persons", people, "100 x 80", "100 x 81", min_side=40)
    changed(lambda content: content["annotations"][0].update(segmentation=[[1, 2]]))
    faulty("coco-persons", people, "000000000020", "annotation", min_side=40)
    path.write_text(whole)
    faulty("coco-persons", people, "none of", "--person-min 0.99", min_side=40, person_min=0.99, person_max=0.995)
    (people / "images/train2017/000000000010.jpg").unlink()
    faulty("coco-persons", people, "000000000010.jpg", "train2017.zip", min_side=40)
    path.unlink()
    faulty("coco-persons", people, str(path), "missing")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    faulty("coco-persons", people, "pycocotools", "infoseg-fast[benchmarks]")


# What is written


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checking_writes_nothing_and_tells_the_counts(coco, capsys):
    before = sorted(coco.parent.rglob("*"))
    assert main(["prepare", "coco-stuff-15", "--root", str(coco), "--check", "--workers", "1"]) == 0
    assert "7 images (train2017 5, val2017 2)" in capsys.readouterr().out
    assert sorted(coco.parent.rglob("*")) == before


def test_the_manifest_tells_sources_hashes_versions_and_options(coco):
    import hashlib

    root = prepared("coco-stuff-3", coco, unlabelled="iic")
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["options"] == {"partition": "iid", "unlabelled": "iic"}
    assert manifest["images"] == 7 and manifest["parts"] == {"train2017": 5, "val2017": 2} and manifest["framed"] >= 2
    assert manifest["sources"][f"curated/val2017/{LIST_NAME}.txt"]["images"] == 2
    assert {"python", "numpy", "pillow", "infoseg-fast"} <= set(manifest["versions"])
    for shard, record in enumerate(manifest["shards"]):
        for kind in ("image", "label"):
            data = (root / "shards" / f"{shard:05d}.{kind}s").read_bytes()
            assert len(data) == record[f"{kind}_bytes"]
            assert hashlib.sha256(data).hexdigest() == record[f"{kind}_sha256"]
    assert (root / "classes.txt").read_text().split() == ["sky", "plant", "ground"]


@pytest.fixture
def many_shards(coco, monkeypatch):
    monkeypatch.setattr("infoseg_fast.data.coco.PER_SHARD", 2)
    return coco


def test_processes_write_the_same_bytes_as_one(many_shards):
    assert files_of(prepared("coco-stuff-15", many_shards)) == files_of(
        prepared("coco-stuff-15", many_shards, workers=2)
    )


def test_an_interrupted_preparation_goes_on_where_it_was(many_shards, monkeypatch):
    whole, out, convert, calls = prepared("coco-stuff-15", many_shards), many_shards.parent / "out", prepare.convert, []

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments[-1])
        return convert(*arguments)

    monkeypatch.setattr(prepare, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("coco-stuff-15", many_shards, out, workers=1, progress=False)
    assert not out.exists()
    calls.clear()
    # A shard cut short after its record was written is written anew; the other done one is not.
    torn = out.with_name(".out.partial") / "shards/00001.images"
    torn.write_bytes(torn.read_bytes()[:-1])
    monkeypatch.setattr(prepare, "convert", lambda *arguments: calls.append(arguments[-1]) or convert(*arguments))
    prepare.prepare("coco-stuff-15", many_shards, out, workers=1, progress=False)
    assert sorted(calls) == [1, 2, 3] and files_of(out) == files_of(whole)
    assert not torn.parent.exists()


def test_other_options_do_not_go_on_with_an_unfinished_folder(many_shards, monkeypatch):
    out, convert = many_shards.parent / "out", prepare.convert
    partial = out.with_name(".out.partial")
    prepare_one = {"workers": 1, "progress": False}

    def failing(*_):
        raise OSError(5, "stopped")

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "convert", failing)
        refused(lambda: prepare.prepare("coco-stuff-15", many_shards, out, **prepare_one), "--out", "stopped")
    assert (partial / "shards").is_dir()
    calls = []
    monkeypatch.setattr(prepare, "convert", lambda *arguments: calls.append(arguments[-1]) or convert(*arguments))
    prepare.prepare("coco-stuff-3", many_shards, out, **prepare_one)
    assert calls == [0, 1, 2, 3] and len(open_set(str(out), "all")) == 7


KILLED = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from raw_downloads import mini_coco
from infoseg_fast.data import coco, prepare
from infoseg_fast.data.protocols import PROTOCOLS
root = Path({root!r})
coco.PER_SHARD = 2
PROTOCOLS["coco-stuff-15"] = mini_coco("coco-stuff-15", root)
convert = prepare.convert
def slow(*arguments):
    result = convert(*arguments)
    print("shard", flush=True)
    import time
    time.sleep(2)
    return result
prepare.convert = slow
prepare.prepare("coco-stuff-15", root, Path({out!r}), workers=1, progress=False)
"""


def test_a_killed_preparation_goes_on_to_the_same_bytes(many_shards):
    whole, out = prepared("coco-stuff-15", many_shards), many_shards.parent / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(many_shards), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"shard\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert not out.exists() and (out.with_name(".killed.partial") / "shards/00000.json").is_file()
    prepare.prepare("coco-stuff-15", many_shards, out, workers=1, progress=False)
    assert files_of(out) == files_of(whole)


def test_workers_end_when_their_parent_is_killed():
    code = (
        "import os, sys, time\n"
        "from infoseg_fast.data.workers import Pool\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2, False) as pool:\n"
        "        print(*{pid for _, pid in pool.run(os.getpid, [(0, ()), (1, ())])}, flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    waited = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") and state_of(pid) != "Z" for pid in workers):
        assert time.monotonic() < waited, "a worker outlived its parent"
        time.sleep(0.05)


def test_a_killed_worker_is_one_line():
    def lost():
        with workers.Pool(2, False) as pool:
            list(pool.run(os._exit, [(0, (1,))]))

    refused(lost, "killed", "--workers")


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_too_little_disk_space_is_told_before_anything_is_written(coco, monkeypatch):
    usage = shutil.disk_usage(coco)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    out = coco.parent / "out"
    refused(lambda: prepare.prepare("coco-stuff-15", coco, out, workers=1, progress=False), "--out", "GB", "0.00 GB")
    assert not out.exists() and not out.with_name(".out.partial").exists()


def test_a_folder_that_exists_is_left_alone(coco):
    (coco.parent / "mine").mkdir()
    refused(lambda: prepare.prepare("coco-stuff-15", coco, coco.parent / "mine"), "--out", "exists")


def test_one_call_at_a_time_prepares_a_folder(coco, monkeypatch):
    read, out = prepare.coco.read, coco.parent / "out"

    def call() -> None:
        prepare.prepare("coco-stuff-3", coco, out, workers=1, progress=False)

    def called_again(*arguments):
        refused(call, "--out", "is in use: another infoseg prepare writes to it")
        yield from read(*arguments)

    monkeypatch.setattr(prepare.coco, "read", called_again)
    call()
    assert len(open_set(str(out), "all")) == 7
    (coco.parent / "link").symlink_to(coco.parent / "nowhere")
    refused(lambda: prepare.prepare("coco-stuff-3", coco, coco.parent / "link"), "link exists")


@pytest.mark.parametrize("damage", ["shard", "index", "empty", "other", "manifest", "list", "format", "split"])
def test_a_damaged_prepared_set_is_refused(coco, damage):
    root = prepared("coco-stuff-15", coco)
    manifest = root / "manifest.json"
    if damage == "shard":
        path = root / "shards/00000.labels"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "index":
        np.save(root / "index.npy", np.load(root / "index.npy")[:-1])
    elif damage == "empty":
        (root / "index.npy").write_bytes(b"")
    elif damage == "other":
        index = np.load(root / "index.npy")
        index["offset"] += 1
        np.save(root / "index.npy", index)
    elif damage == "list":
        manifest.write_text("[]")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif damage == "format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    split = "test" if damage == "split" else "eval"
    told = "--split" if damage == "split" else "format 0" if damage == "format" else "damaged"
    refused(lambda: open_set(str(root), split), told)


def test_a_label_that_is_no_class_is_named_where_it_is_scored(coco):
    images = open_set(str(prepared("coco-stuff-15", coco)), "eval")
    path = images._paths[0][1]
    path.write_bytes(b"\x64" * path.stat().st_size)
    told = rf"label map of image {images.stems[0]} of .* holds 100; values below 15 and 255"
    with pytest.raises(DataError, match=told):
        score(lambda pixels, target: torch.zeros(2, 15, dtype=torch.int64), 2, images)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["coco-stuff-15", "--out", "x"], "--root"),
        (["coco-stuff-15", "--root", "{raw}"], "--out"),
        (["coco-stuff-15", "--root", "{raw}", "--out", "x", "--workers", "0"], "--workers"),
        (["landcover", "--root", "{raw}", "--out", "x"], "landcover"),
        (["landcover", "--out", "x", "--workers", "0"], "no other option"),
        (["potsdam-6", "--root", "{raw}", "--check", "--unlabelled", "iic"], "--unlabelled"),
        (["potsdam-6", "--root", "{raw}", "--check", "--split-seed", "-1"], "--split-seed must be at least 0, not -1"),
        (["coco-persons", "--root", "{raw}", "--check", "--min-side", "-1"], "--min-side must be at least 0, not -1"),
    ],
)
def test_the_command_line_names_the_option(coco, arguments, told, capsys):
    assert main(["prepare", *(argument.format(raw=coco) for argument in arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and told in printed
