"""Prepared benchmarks through training, evaluation and the baselines, with the protocol beside
every number.
"""

import builtins
import json
import shlex
import sys

import numpy as np
import pytest
import torch
from conftest import call, write_folder, write_labelled
from PIL import Image
from raw_downloads import WINDOW, mini_coco, mini_potsdam, write_coco, write_potsdam
from test_data import refused

import infoseg_fast as isf
from infoseg_fast.cli import main
from infoseg_fast.data import open_set
from infoseg_fast.data.crops import CropSampler, CropSet, crop_loader, held_in_memory
from infoseg_fast.data.prepare import prepare
from infoseg_fast.data.protocols import PROTOCOLS
from infoseg_fast.model import InfoSegNet, grey, sobel
from infoseg_fast.scores.baselines import Gabor, baseline, mirrored

TRAIN = shlex.split("--width 8 --dim 16 --batch-size 4 --steps 3 --eval-every 0")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Prepared miniatures: coco-stuff-3 with both partitions, and potsdam-3."""
    root = tmp_path_factory.mktemp("sets")
    write_coco(root / "coco")
    write_potsdam(root / "potsdam")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PROTOCOLS, "coco-stuff-3", mini_coco("coco-stuff-3", root / "coco"))
        patched.setitem(PROTOCOLS, "potsdam-3", mini_potsdam("potsdam-3"))
        for name, raw, options in (
            ("coco-stuff-3", "coco", {}),
            ("coco-stuff-3-held-out", "coco", {"partition": "iid+", "unlabelled": "iic"}),
            ("potsdam-3", "potsdam", {}),
        ):
            protocol = name.removesuffix("-held-out")
            prepare(protocol, root / raw, root / name, options, workers=1, progress=False)
    return root


def test_train_and_eval_print_the_protocol_beside_the_number(sets, tmp_path, capsys):
    run, data = tmp_path / "run", sets / "coco-stuff-3"
    assert main(["train", "--data", str(data), "--out", str(run), *TRAIN, "--loss-mask", "gt"]) == 0
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["crop"] == WINDOW and config["classes"] == 3 and config["loss_mask"] == "gt"
    for text in (capsys.readouterr().out, output_of(capsys, "eval", run, "--data", data)):
        (line,) = [line for line in text.splitlines() if line.startswith("protocol: coco-stuff-3")]
        for part in (
            "eval split: 7 images of train2017/Mini_List_1, val2017/Mini_List_1", "partition iid", "scored",
            f"centre {WINDOW} x {WINDOW} at scale 0.33", "unlabelled ignore", "pixels counted", "% ignored",
            "class shares 0.", "constant predictor 0.", "loss mask gt", "epoch rule last step (no label chose it)",
            "accuracy by --unlabelled: ignore 0.", "iic 0.",
        ):  # fmt: skip
            assert part in line, part
    text = output_of(capsys, "eval", run, "--data", data, "--checkpoint", "best_loss", "--split", "val")
    assert "val split: 2 images" in text and "epoch rule lowest training loss" in text


def output_of(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_json_holds_the_protocol(sets, tmp_path, capsys):
    scores = json.loads(output_of(capsys, "baseline", "constant", "--data", sets / "coco-stuff-3", "--json"))
    protocol = scores["protocol"]
    found = open_set(str(sets / "coco-stuff-3"), "eval")
    labels = np.stack([found.label(i) for i in range(len(found))])
    assert scores["num_pixels"] == (labels != 255).sum()
    assert protocol["ignored_share"] == pytest.approx((labels == 255).mean())
    assert scores["pixel_accuracy"] == scores["majority_accuracy"] == max(scores["class_shares"])


def test_both_ways_to_count_unlabelled_pixels_are_reported(sets):
    """One count gives both numbers, and each equals the number of a set that is prepared that way."""
    scores = {}
    for name in ("coco-stuff-3", "coco-stuff-3-held-out"):
        scores[name], _ = baseline("constant", str(sets / name), "val")
    ignore, iic = scores["coco-stuff-3"], scores["coco-stuff-3-held-out"]
    both = {"ignore": ignore["pixel_accuracy"], "iic": iic["pixel_accuracy"]}
    assert ignore["protocol"]["pixel_accuracy_by_unlabelled"] == both
    assert iic["protocol"]["pixel_accuracy_by_unlabelled"] == both and both["ignore"] != both["iic"]
    found = open_set(str(sets / "coco-stuff-3-held-out"), "val")
    labels = np.stack([found.label(i) for i in range(len(found))])
    assert iic["num_pixels"] == (labels != 255).sum() > ignore["num_pixels"]


def test_unlabelled_patches_are_trained_on_and_not_scored(sets, tmp_path, capsys):
    run, data = tmp_path / "run", sets / "potsdam-3"
    assert main(["train", "--data", str(data), "--out", str(run), *TRAIN, "--jitter", "0.1", "--position", "off"]) == 0
    assert json.loads((run / "config.json").read_text())["data"]["images"] == 27
    by_split = {}
    capsys.readouterr()
    for split in ("eval", "all", "train"):
        by_split[split] = json.loads(output_of(capsys, "eval", run, "--data", data, "--split", split, "--json"))
        assert by_split[split]["num_pixels"] == 18 * 64 and by_split[split]["protocol"]["images"] == 18
        assert by_split[split]["protocol"]["ignored_share"] == 0
    assert (run / "report.html").stat().st_size > 1000  # RGB of four channels
    assert InfoSegNet(**json.loads(json.dumps(network_of(run)))).mean.numel() == 4


def network_of(run) -> dict:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["labelling"]["arguments"]


@pytest.mark.parametrize("inputs", ["grey", "sobel"])
def test_grey_and_sobel_inputs_train_and_predict(sets, tmp_path, inputs, capsys):
    run = tmp_path / "run"
    data = sets / "coco-stuff-3"
    assert main(["train", "--data", str(data), "--out", str(run), *TRAIN, "--inputs", inputs]) == 0
    assert network_of(run)["inputs"] == inputs
    capsys.readouterr()
    output_of(capsys, "eval", run, "--data", data)


def test_grey_and_sobel_are_the_published_arithmetic():
    images = torch.rand(2, 4, 6, 7)
    blue_green_red = images[:, [2, 1, 0]].double()
    stated = (0.299 * blue_green_red[:, 0] + 0.587 * blue_green_red[:, 1] + 0.114 * blue_green_red[:, 2]).numpy()
    torch.testing.assert_close(grey(images)[:, 0].double(), torch.from_numpy(stated), rtol=1e-5, atol=1e-6)
    framed = np.pad(stated, ((0, 0), (1, 1), (1, 1)))
    gx = np.zeros_like(stated)
    gy = np.zeros_like(stated)
    for y in range(6):
        for x in range(7):
            window = framed[:, y : y + 3, x : x + 3]
            gx[:, y, x] = (window[:, :, 0] - window[:, :, 2]) @ [1, 2, 1]
            gy[:, y, x] = (window[:, 0] - window[:, 2]) @ [1, 2, 1]
    found = sobel(grey(images)).double().numpy()
    np.testing.assert_allclose(found, np.stack([gx, gy], 1), atol=1e-5)
    model = InfoSegNet(in_channels=4, num_classes=3, width=8, dim=8, inputs="sobel")
    assert model.normalize(images).shape == (2, 6, 32, 32) and model.backbone.A[0].in_channels == 6
    assert torch.equal(model.normalize(images)[:, :4, :6, :7], images)
    with pytest.raises(ValueError, match="inputs must be one of"):
        InfoSegNet(inputs="edges")


def test_predict_resizes_downloaded_files_as_the_benchmark_does(sets, tmp_path, capsys):
    """The labels of a file equal those of the file resized by the factor of the protocol, at the
    size of the file.
    """
    run, data = tmp_path / "run", sets / "coco-stuff-3"
    assert main(["train", "--data", str(data), "--out", str(run), *TRAIN]) == 0
    image = sets / "coco/images/train2017/000000001009.jpg"
    output_of(capsys, "predict", run, image, "--out", tmp_path / "out")
    segmenter = isf.load(run)
    assert segmenter.scale == 1 and segmenter.labelling.data.raw_scale == 0.33
    segmenter.scale = 0.33
    pixels = torch.from_numpy(np.asarray(Image.open(image)).transpose(2, 0, 1) / np.float32(255))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/000000001009.png")), segmenter.segment(pixels[None])[0])


def test_the_loss_mask_excludes_pixels_without_a_label(sets):
    found = open_set(str(sets / "coco-stuff-3"), "train")
    (batch,) = list(CropSampler(len(found), len(found), 2, 0, 0, 1))
    plain, masked = CropSet(found, WINDOW).__getitems__(batch), CropSet(found, WINDOW, True).__getitems__(batch)
    assert torch.equal(plain.images, masked.images)
    for crop, valid in zip(batch, masked.valid.numpy(), strict=True):
        rows, columns = found.sizes[crop.index]
        top, left = int(crop.y * (rows - WINDOW + 1)), int(crop.x * (columns - WINDOW + 1))
        label = found.label(crop.index)[top : top + WINDOW, left : left + WINDOW]
        assert np.array_equal(valid, label != 255)


def test_the_loss_mask_works_on_a_folder_at_a_scale_and_needs_labels(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", number=3, side=20)
    found = open_set(str(folder), "train", scale=0.5)
    _, valid = found.crops(np.arange(3), np.zeros(3), np.zeros(3), 12, labelled=True)
    assert valid[:, :10, :10].all() and not valid[:, 10:].any() and not valid[:, :, 10:].any()
    bare = write_folder(tmp_path / "bare", labels=False)
    arguments = ["--data", str(bare), "--out", str(tmp_path / "run"), "--classes", "2", "--loss-mask", "gt"]
    assert main(["train", *arguments]) == 2
    assert "--loss-mask" in capsys.readouterr().err


def test_a_prepared_set_is_read_in_the_training_process_and_not_copied(sets):
    found = open_set(str(sets / "coco-stuff-3"), "train")
    assert held_in_memory(found) is found
    sampler = CropSampler(len(found), 3, 2, 0, 0, 4)
    batches = [[b.images for b in crop_loader(found, WINDOW, sampler, workers)] for workers in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True)) and len(batches[0]) == 4
    larger, valid = found.crops(np.array([0, 1]), np.zeros(2), np.zeros(2), 40)  # than some images: padded
    assert larger.shape == (2, 3, 40, 40) and valid is not None


# Baselines


def test_kmeans_finds_colours_and_gabor_energies_find_textures(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    for i in range(6):
        label = (x > rng.integers(16, 32)).astype(np.uint8)
        # One mean colour; stripes of two directions.
        stripes = np.where(label == 1, np.sin(x * 1.3), np.sin(y * 1.3)) * 60 + 128
        image = np.repeat(stripes[..., None], 3, axis=2) + rng.normal(0, 5, (48, 48, 3))
        write_labelled(tmp_path / "data", f"{i}", image.clip(0, 255), label)
    accuracy = {}
    for method in ("constant", "kmeans", "kmeans-gabor"):
        arguments = ["baseline", method, "--data", str(tmp_path / "data"), "--samples", "5000", "--json"]
        scores = json.loads(output_of(capsys, *arguments))
        assert scores == json.loads(output_of(capsys, *arguments))  # a seed, a result
        accuracy[method] = scores["pixel_accuracy"]
        assert scores["num_pixels"] == 6 * 48 * 48
    assert accuracy["constant"] == scores["majority_accuracy"]
    assert accuracy["kmeans"] < 0.65 < 0.9 < accuracy["kmeans-gabor"]


def test_kmeans_separates_two_colours(tmp_path):
    root = write_folder(tmp_path / "data")
    for path in (root / "images").iterdir():
        label = np.asarray(Image.open(root / "labels" / path.name))
        Image.fromarray(np.where(label[..., None] == 1, (200, 90, 60), (80, 120, 190)).astype(np.uint8)).save(path)
    scores, _ = baseline("kmeans", str(root), samples=3000)
    assert scores["pixel_accuracy"] == 1


def test_a_mixture_finds_a_narrow_colour_within_a_wide_one(tmp_path):
    """The classes overlap, and differ in covariance, which k-means has none of."""
    rng = np.random.default_rng(0)
    for i in range(6):
        label = np.zeros((48, 48), np.uint8)
        label[:, : rng.integers(16, 32)] = 1
        blocks = rng.uniform(10, 245, (4, 4, 3)).repeat(12, 0).repeat(12, 1)
        image = np.where(label[..., None] == 1, blocks, 170 + rng.normal(0, 5, (48, 48, 3)))
        write_labelled(tmp_path, f"{i}", image, label)
    found = {method: baseline(method, str(tmp_path), samples=5000)[0] for method in ("kmeans", "mixture")}
    assert found["kmeans"]["pixel_accuracy"] < 0.8 < 0.85 < found["mixture"]["pixel_accuracy"]


def test_a_merged_mixture_joins_the_shades_of_a_class(tmp_path):
    """Three shades of each class share every image, and no image has both classes of one shade."""
    rng = np.random.default_rng(0)
    shades = np.array([[(60, 90, 40), (70, 100, 60), (80, 110, 80)], [(200, 60, 50), (210, 80, 60), (220, 100, 70)]])
    for i in range(8):
        label = np.zeros((48, 48), np.uint8)
        label[:, rng.integers(12, 36) :] = 1
        shade = rng.integers(0, 3, (6, 6)).repeat(8, 0).repeat(8, 1)
        colour = shades[label, shade] + rng.normal(0, 2, (48, 48, 3))
        write_labelled(tmp_path, f"{i}", colour, label)
    scores, _ = baseline("mixture-merged", str(tmp_path), samples=5000)
    assert len(scores["mapping"]) == 2 and scores["pixel_accuracy"] > 0.95


def test_gabor_energies_are_the_convolution(sets):
    skimage_filters = pytest.importorskip("skimage.filters")
    import scipy.ndimage

    features = Gabor()
    image = torch.rand(1, 1, 20, 23)
    maps = features(image)
    assert maps.shape == (1, 13, 20, 23) and torch.equal(maps[:, :1], image)
    kernel = skimage_filters.gabor_kernel(0.2, theta=np.pi / 4)
    pixels = image[0, 0].double().numpy()
    response = scipy.ndimage.convolve(pixels, kernel.real) + 1j * scipy.ndimage.convolve(pixels, kernel.imag)
    energy = scipy.ndimage.gaussian_filter(np.abs(response), 2.5, truncate=3.2)
    np.testing.assert_allclose(maps[0, 1 + 4 + 1].numpy(), energy, atol=1e-4)
    assert mirrored(3, 4).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("method", "module", "package"),
    [
        ("kmeans", "sklearn", "scikit-learn"),
        ("kmeans-gabor", "skimage", "scikit-image"),
        ("mixture", "sklearn", "scikit-learn"),
    ],
)
def test_a_missing_package_is_one_line(folder, method, module, package, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **named):
        if name.split(".")[0] == module:
            raise ImportError(f"No module named {name!r}")
        return imported(name, *arguments, **named)

    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(builtins, "__import__", without)
    refused(lambda: baseline(method, str(folder)), package, "infoseg-fast[baselines]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kmeans", "--data", "{bare}"], "no labels"),
        (["kmeans", "--data", "{data}", "--classes", "1"], "--classes"),
        (["kmeans", "--data", "{data}", "--split", "test"], "--split"),
        (["median", "--data", "{data}"], "median"),
        (["constant", "--data", "{data}/none"], "none"),
    ],
)
def test_an_error_of_baseline_is_one_line(tmp_path, arguments, message, capsys):
    places = {"data": write_folder(tmp_path / "data"), "bare": write_folder(tmp_path / "bare", labels=False)}
    status = call("baseline", *(argument.format(**places) for argument in arguments))
    printed = capsys.readouterr().err
    assert status == 2 and printed.count("\n") == 1 and message in printed
