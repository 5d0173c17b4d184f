"""WebDataset shards hold the same set as the folder that they were made of."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import write_folder
from PIL import Image
from test_train import SMALL, losses, same_weights, weights

from infoseg_fast import cli
from infoseg_fast.data import crops, export, open_set
from infoseg_fast.data.crops import CropSampler, crop_loader
from infoseg_fast.data.export import write_shards
from infoseg_fast.data.reader import ReadOptions
from infoseg_fast.data.shards import ShardSet, _opened, expanded
from infoseg_fast.errors import DataError
from infoseg_fast.train import train


@pytest.fixture
def folder(tmp_path) -> Path:
    root = write_folder(tmp_path / "data", number=11, side=32)
    grey = np.arange(40 * 36, dtype=np.uint8).reshape(40, 36)
    (root / "images/sub").mkdir()
    (root / "labels/sub").mkdir()
    Image.fromarray(grey).save(root / "images/sub/grey.v2.png")
    Image.fromarray(grey % 2).save(root / "labels/sub/grey.v2.png")
    (root / "classes.txt").write_text("coarse\nfine\n")
    return root


@pytest.fixture
def shards(folder, tmp_path) -> str:
    number, pattern = write_shards(folder, tmp_path / "shards", shard_bytes=20_000)
    assert number == 12 and len(expanded(pattern)) > 2
    return pattern


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_hold_the_set_of_the_folder(folder, shards, indexed):
    if not indexed:
        for shard in expanded(shards):
            shard.with_name(shard.name + ".index.json").unlink()
    found, expected = open_set(shards, "train"), open_set(str(folder), "train")
    assert isinstance(found, ShardSet)
    assert (found.classes, found.num_classes, found.channels, found.dtype, found.has_labels) == (
        expected.classes, expected.num_classes, expected.channels, expected.dtype, True,
    )  # fmt: skip
    assert [stem.split("/", 1)[1] for stem in found.stems] == [stem.replace(".", "_") for stem in expected.stems]
    assert found.sizes == expected.sizes
    for index in [*range(12), 3, 0]:
        assert np.array_equal(found.read(index)[0], expected.read(index)[0])
        assert np.array_equal(found.label(index), expected.label(index))
    found.check_labels()
    assert open_set(shards, "train").fingerprint() == found.fingerprint()


@pytest.mark.parametrize("how", [{}, {"compression": "deflate", "tile": (16, 16)}])
def test_tiff_files_in_shards(tmp_path, how):
    (tmp_path / "data/images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 2**16, (3, 40, 36), dtype=np.uint16)
    for number in range(3):
        tifffile.imwrite(tmp_path / f"data/images/{number}.tif", pixels[number], **how)
    _, pattern = write_shards(tmp_path / "data", tmp_path / "shards")
    images = open_set(pattern, "train")
    for index in (0, 2, 1, 0):
        assert np.array_equal(images.read(index)[0], pixels[index : index + 1])


def test_images_of_several_files_are_refused_in_shards(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "data/images/a.tif", np.zeros((40, 36), np.uint8))
    tifffile.imwrite(tmp_path / "data/images/a.tif.msk", np.zeros((40, 36), np.uint8))
    with pytest.raises(DataError, match=r"a\.tif needs .*a\.tif\.msk too"):
        write_shards(tmp_path / "data", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_shards_resumes_to_the_same_bits(shards, tmp_path, monkeypatch, without_curves, workers):
    monkeypatch.setattr(crops, "IN_MEMORY_BYTES", 0)
    how = SMALL | {"data": shards, "recipe": "paper", "width": 4, "dim": 8, "workers": workers}
    train(out=tmp_path / "whole", **how | {"steps": 8})
    train(out=tmp_path / "parts", **how | {"steps": 5})  # within an epoch
    train(None, tmp_path / "parts", resume=True, steps=8)
    assert losses(tmp_path / "parts")[-1] == losses(tmp_path / "whole")[-1]
    assert same_weights(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_every_epoch_reads_each_image_once_and_ranks_share_it(shards):
    images = open_set(shards, "train")
    seen = [crop.index for rank in range(2) for batch in CropSampler(12, 6, 2, 0, 0, 2, rank, 2) for crop in batch]
    assert sorted(seen) == list(range(12))
    batch = next(iter(crop_loader(images, 16, CropSampler(12, 6, 2, 0, 0, 1, 1, 2), 0)))
    assert batch.images.shape == (3, 3, 16, 16)


def test_memory_does_not_grow_with_the_images_that_are_read(tmp_path):
    """An epoch of many images: the process does not get larger after the first tenth."""
    shard, image = tmp_path / "many.tar", io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(image, "png")
    with tarfile.open(shard, "w") as archive:
        for number in range(2000):
            member = tarfile.TarInfo(f"{number:06d}.png")
            member.size = len(image.getvalue())
            archive.addfile(member, io.BytesIO(image.getvalue()))
    images = ShardSet(str(shard))
    loader = crop_loader(images, 32, CropSampler(2000, 20, 2, 0, 0, 100), 0)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    sizes, files = [], []
    for _ in loader:
        sizes.append(resident())
        files.append(len(os.listdir("/proc/self/fd")))
    assert len(sizes) == 100 and sizes[-1] - sizes[10] < 8 * 2**20  # the images are 24 MB
    assert max(files[10:]) <= files[10] + 2


def test_the_command_writes_shards_and_names_the_pattern(folder, tmp_path, capsys):
    out = tmp_path / "made"
    assert cli.main(["prepare", "shards", "--root", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"12 images written; --data '{out}/shards-{{0000..0000}}.tar'" in said
    record = json.loads((out / "shards-0000.tar.index.json").read_text())
    assert len(record["members"]) == 24 and len(record["images"]) == 12
    assert cli.main(["prepare", "shards", "--root", str(folder), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_indexed_images_are_not_opened_before_they_are_read(shards, monkeypatch):
    index = Path(f"{expanded(shards)[0]}.index.json")
    written = index.read_text()
    index.write_text(json.dumps(json.loads(written) | {"images": []}))  # of no use: the images are opened
    headers = open_set(shards, "train")._headers
    index.write_text(written)
    monkeypatch.setattr("infoseg_fast.data.shards.described_with", lambda *_: pytest.fail("opens an image"))
    assert open_set(shards, "train")._headers == headers
    with pytest.raises(DataError, match=r"image .*shards-0000\.tar:.*png cannot be read: no band 5 \(--bands\)"):
        ShardSet(shards, options=ReadOptions(bands=(5,)))


@pytest.mark.parametrize("member", [["im0.png", 0, "x"], ["im0.png", None, 5], [1, 2, 3], ["im0.png", 0.5, 2]])
def test_an_index_that_is_none_is_not_used(shards, member):
    index = Path(f"{expanded(shards)[0]}.index.json")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"members": [member]}))
    assert len(open_set(shards, "train")) == 12


def test_an_image_that_differs_from_the_index_is_refused(shards):
    index = Path(f"{expanded(shards)[0]}.index.json")
    record = json.loads(index.read_text())
    name, fields = next(iter(record["images"].items()))
    record["images"][name] = [fields[0] + 1, *fields[1:]]  # as if the image in the shard was replaced
    index.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"shards-0000\.tar:.*png is not as the index of its shard says.*delete"):
        open_set(shards, "train").read(0)


def test_a_shard_that_leaves_the_cache_stays_open_while_it_is_read(shards, monkeypatch):
    monkeypatch.setattr("infoseg_fast.data.shards._opened", _opened.__wrapped__)  # keeps none
    assert open_set(shards, "train").read(0)[0].shape == (3, 32, 32)


def test_faults_are_named(shards, tmp_path):
    with pytest.raises(DataError, match=r"shard .*shards-0003\.tar does not exist"):
        open_set(str(Path(shards).parent / "shards-{0000..0009}.tar"), "train")
    first = expanded(shards)[0]
    content = first.read_bytes()
    images = open_set(shards, "train")
    place = images._images[1]
    first.write_bytes(content[: place.offset + 40] + bytes(place.size - 40) + content[place.offset + place.size :])
    with pytest.raises(DataError, match=r"shards-0000\.tar:im1\.png cannot be read"):
        images.read(1)
    first.write_bytes(content[:3000])
    with pytest.raises(DataError, match=r"shards-0000\.tar"):
        open_set(shards, "train")
    (tmp_path / "no.tar").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"no\.tar cannot be read"):
        open_set(str(tmp_path / "no.tar"), "train")
    with pytest.raises(DataError, match="compressed shards cannot be read at random; decompress them to .tar"):
        open_set("a-{0..3}.tar.gz", "train")


def test_images_that_are_links_are_in_the_shards_as_files(folder, tmp_path):
    """A link that stayed one, and a second name of one file, would not be read."""
    (folder / "images/im0.png").rename(tmp_path / "elsewhere.png")
    (folder / "images/im0.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "images/im1.png").unlink()
    os.link(folder / "images/im2.png", folder / "images/im1.png")
    number, pattern = write_shards(folder, tmp_path / "shards")
    found, expected = open_set(pattern, "train"), open_set(str(folder), "train")
    assert len(found) == number == 12
    assert all(np.array_equal(found.read(index)[0], expected.read(index)[0]) for index in range(12))


def test_labels_of_pixels_without_data_do_not_count(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/labels").mkdir()
    pixels = np.random.default_rng(0).random((40, 36), dtype=np.float32)
    pixels[:9] = np.nan
    tifffile.imwrite(tmp_path / "data/images/a.tif", pixels)
    Image.fromarray(np.ones((40, 36), np.uint8)).save(tmp_path / "data/labels/a.png")
    images = open_set(write_shards(tmp_path / "data", tmp_path / "shards")[1], "eval")
    assert (images.label(0)[:9] == 255).all() and (images.label(0)[9:] == 1).all()


def tar_file(path: Path, *members: str) -> Path:
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image, "png")
    with tarfile.open(path, "w") as archive:
        for name in members:
            member = tarfile.TarInfo(name)
            member.size = len(image.getvalue())
            archive.addfile(member, io.BytesIO(image.getvalue()))
    return path


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_does_not_end_at_a_damaged_header(tmp_path, cut):
    shard = tar_file(tmp_path / "a.tar", "0.png", "1.png", "2.png")
    with tarfile.open(shard) as archive:
        at = archive.getmembers()[1].offset
    content = shard.read_bytes()
    shard.write_bytes(content[: at + 100] if cut else content[:at] + b"\xff" * 100 + content[at + 100 :])
    with pytest.raises(DataError, match=rf"a\.tar cannot be read: no header at byte {at} \(damaged\)"):
        open_set(str(shard), "train")


def test_members_that_look_like_images_are_not_left_out_in_silence(tmp_path, caplog):
    shard = tar_file(tmp_path / "a.tar", "./a.png", "a.1.png", "b.2.png", "c.png", "c.depth.png", ".hidden/d.png")
    assert open_set(str(shard), "train").stems == ["a/./a", "a/c"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{shard}: left out, because a key ends at the first dot of a name: {shard}:a.1.png and 1 others"
    ]
    with pytest.raises(DataError, match=r"left out, .*: .*b\.tar:x\.1\.png"):
        open_set(str(tar_file(tmp_path / "b.tar", "x.1.png")), "train")
    with pytest.raises(DataError, match=r"two images of the key a: a\.png and a\.PNG"):
        open_set(str(tar_file(tmp_path / "c.tar", "a.png", "a.PNG")), "train")
    with tarfile.open(shard, "a") as archive:
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.LNKTYPE, "c.png"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"its member link\.png is a link"):
        open_set(str(shard), "train")


def test_shards_of_one_name_in_several_folders_have_stems_of_their_own(tmp_path):
    for number in (1, 2):
        (tmp_path / f"part{number}").mkdir()
        tar_file(tmp_path / f"part{number}/x.tar", "a.png")
    assert open_set(str(tmp_path / "part{1..2}/x.tar"), "train").stems == ["part1/x/a", "part2/x/a"]


def test_one_call_at_a_time_writes_a_folder_of_shards(folder, tmp_path, monkeypatch):
    within = export.members_in

    def called_again(shard):
        with pytest.raises(DataError, match="shards is in use: another infoseg prepare writes to it"):
            write_shards(folder, tmp_path / "shards")
        return within(shard)

    monkeypatch.setattr(export, "members_in", called_again)
    assert len(open_set(write_shards(folder, tmp_path / "shards")[1], "train")) == 12

    def interrupted(shard):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "members_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, tmp_path / "more")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "shards"}


def test_lists_that_are_not_taken_and_missing_labels_are_named(folder, tmp_path, caplog):
    (folder / "eval.txt").write_text("im1\nim2\n")
    (folder / "labels/im0.png").unlink()
    _, pattern = write_shards(folder, tmp_path / "shards")
    assert not open_set(pattern, "eval").has_labels
    assert [record.getMessage() for record in caplog.records] == [
        "eval.txt not taken: shards have the same images in every split",
        f"{pattern}: no scores, since 1 images have no label map",
    ]


def test_patterns_that_are_names(folder, tmp_path):
    tar_file(tmp_path / "x{0..1}.tar", "a.png")
    assert len(open_set(str(tmp_path / "x{0..1}.tar"), "train")) == 1
    with pytest.raises(DataError, match="would take for numbers of shards"):
        write_shards(folder, tmp_path / "y{0..1}")
    (tmp_path / "z").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="z exists; choose another folder"):
        write_shards(folder, tmp_path / "z")
    with pytest.raises(DataError, match=r"a-0\.tar does not exist"):
        expanded("a-{0..999999999999}.tar")


def test_ranges_count_with_the_digits_of_their_first_number(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in expanded(str(tmp_path / "a-{08..10}.tar"))] == ["a-08.tar", "a-09.tar", "a-10.tar"]
    with pytest.raises(DataError, match="counts no shard"):
        expanded("a-{3..2}.tar")
