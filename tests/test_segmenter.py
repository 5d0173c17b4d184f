"""Whole images of any size: tiles, padding, scale; evaluation in bounded memory."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import infoseg_fast as isf
from infoseg_fast import segmenter as segmenter_module
from infoseg_fast import tile_labels as module
from infoseg_fast.data.base import ImageSet, scaled_size
from infoseg_fast.export import LabelModel
from infoseg_fast.model import MAX_DEPTH
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.recipe.refinement import colour_moments, colours_of, refinement_of
from infoseg_fast.recipe.smoothing import MAX_RADIUS
from infoseg_fast.scores.evaluate import BATCH_PIXELS, batches, evaluate
from infoseg_fast.tiling import Band, shrinking, upsampling, weighted


def trained(depth=2, inputs="rgb"):
    model = isf.InfoSegNet(width=8, dim=16, num_classes=5, depth=depth, inputs=inputs)
    model.train()
    for _ in range(3):  # so that batch normalisation has statistics of its own
        model(torch.rand(4, 3, 64, 64))
    return model.eval()


@pytest.fixture
def network():
    return trained()


def segmenter(network, refined=False, scale=1.0, smooth=0, **how):
    data = DataInfo(3, 5, None, [0.0] * 3, [1.0] * 3, scale=scale)
    labelling = Labelling(network, {}, data, smooth=smooth, **how)
    if refined:
        images = torch.rand(4, 3, 64, 64)
        with torch.no_grad():
            moments = colour_moments(labelling.probabilities(images), images, None, smooth)
        labelling = dataclasses.replace(labelling, refinement=refinement_of(moments, smooth))
    return isf.Segmenter(labelling)


DEPTHS = pytest.mark.parametrize(("depth", "smooth"), [(0, 1), (2, 0), (MAX_DEPTH, MAX_RADIUS)])
SIZES = pytest.mark.parametrize("size", [(200, 130), (97, 230), (33, 35), (1, 150)])


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("inputs", ["rgb", "sobel"])
@DEPTHS
@SIZES
def test_tiles_give_the_bits_of_the_whole_image(depth, smooth, size, inputs, refined, monkeypatch):
    made = segmenter(trained(depth, inputs), refined, smooth=smooth, temperature=3.0)
    images, target = torch.rand(2, 3, *size), torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    target[:, :10] = 255
    labels, counts = made.segment(images), made.count(images, target, 3)
    monkeypatch.setattr(module, "TILE", 96)
    assert torch.equal(made.segment(images), labels)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    assert torch.equal(made.segment(images), labels)
    assert torch.equal(made.count(images, target, 3), counts)
    assert counts.sum() == (target != 255).sum()


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("groups", [None, [[0, 4], [1], [2, 3]]])
@DEPTHS
@SIZES
def test_labels_are_those_of_the_plain_network(depth, smooth, size, groups, refined):
    made = segmenter(trained(depth), refined and groups is None, smooth=smooth, temperature=3.0, groups=groups)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        # Normalisation folded into a convolution rounds otherwise, so a pixel on the edge between
        # two classes may fall to the other side.
        assert (LabelModel(made.labelling)(images) != made.segment(images)).float().mean() < 1e-3


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize(("size", "scale"), [((120, 90), 0.6), ((50, 60), 2.0)])
def test_tiles_do_not_change_labels_of_resized_images(refined, size, scale, monkeypatch):
    made = segmenter(trained(1), refined, scale, temperature=3.0)
    images = torch.rand(2, 3, *size)
    labels = made.segment(images)
    assert labels.shape == (2, *size)
    inner = F.interpolate(images, size=scaled_size(size, scale), mode="bilinear", antialias=True)
    other = segmenter(made.labelling.network, False, temperature=3.0)
    other = isf.Segmenter(dataclasses.replace(other.labelling, refinement=made.labelling.refinement))
    # Labels at the size of the network, sampled at the nearest pixel.
    near = F.interpolate(other.segment(inner)[:, None].float(), size=size, mode="nearest-exact")[:, 0]
    assert (near == labels).float().mean() > 0.8
    for name, value in (("TILE", 48), ("SCORE_BYTES", 2**17), ("KEPT_BYTES", 0)):
        monkeypatch.setattr(module, name, value)
        assert torch.equal(made.segment(images), labels)


def test_images_are_resized_as_torch_does():
    x = torch.rand(1, 2, 37, 53)
    for n, m in ((37, 12), (37, 36), (37, 80), (37, 37)):
        expected = F.interpolate(x, size=(m, 53), mode="bilinear", antialias=True)
        torch.testing.assert_close(weighted(x, 2, shrinking(range(m), n, m), 0), expected)
        part = weighted(x[:, :, 3:], 2, shrinking(range(m // 2, m), n, m), 3)
        torch.testing.assert_close(part, expected[:, :, m // 2 :])
    expected = F.interpolate(x, size=(148, 212), mode="bilinear", align_corners=False)
    found = weighted(
        weighted(x, 2, upsampling(range(148), 148, 148, 4, 36), 0), 3, upsampling(range(212), 212, 212, 4, 52), 0
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("refined", [False, True])
def test_confidence_is_the_probability_of_the_label(network, refined, monkeypatch):
    made, images = segmenter(network, refined, temperature=100.0), torch.rand(1, 3, 120, 100)
    plan = made.plan((120, 100), confidence=True)
    labels, found = assembled(made, plan, images)
    assert torch.equal(labels, made.segment(images)[0])
    with torch.no_grad():
        probs = made.labelling.probabilities(images)
        refinement = made.labelling.refinement
        if refinement is None:
            shares = F.interpolate(probs, size=(120, 100), mode="bilinear", align_corners=False)
        else:
            shares = refinement.scores(probs, colours_of(images, probs.shape[2:], refinement.radius)).softmax(dim=1)
    expected = shares.gather(1, labels[None, None].long())[0, 0] * 100
    assert (found.float() - expected).abs().max() <= 0.51
    assert found.float().std() > 1
    monkeypatch.setattr(module, "TILE", 48)
    assert torch.equal(assembled(made, made.plan((120, 100), confidence=True), images), torch.stack([labels, found]))


def assembled(made, plan, images):
    """Labels and confidence of one image."""
    found = torch.empty(2, *plan.size, dtype=torch.uint8)
    band = Band(images, (range(images.shape[2]), range(images.shape[3])))
    for part in made.parts(plan, itertools.repeat(band), confidence=True):
        rows, columns = (slice(r.start, r.stop) for r in part.area)
        found[0, rows, columns], found[1, rows, columns] = part.labels[0], part.confidence[0]
    return found


@pytest.mark.parametrize("refined", [False, True])
def test_count_is_segment_then_confusion(network, refined):
    images, target = torch.rand(3, 3, 50, 61), torch.randint(0, 4, (3, 50, 61), dtype=torch.uint8)
    found = segmenter(network, refined)
    assert torch.equal(found.count(images, target, 4), isf.confusion_matrix(found.segment(images), target, 5, 4))


def test_padding_does_not_shift_the_labels(network):
    images = torch.rand(1, 3, 64, 64)
    odd = segmenter(network).segment(images[..., :63, :62])
    features, global_features = network(images[..., :63, :62])
    projection = network.local_projection
    whole = isf.segment(features, global_features, projection.weight, projection.bias, size=(64, 64))
    assert torch.equal(odd, whole[:, :63, :62])


@pytest.mark.parametrize("refined", [False, True])
def test_count_refuses_a_target_out_of_range(network, refined, monkeypatch):
    monkeypatch.setattr(segmenter_module, "BATCH_PIXELS", 32 * 32)  # images go one by one
    target = torch.zeros(2, 32, 32, dtype=torch.uint8)
    target[1, 3, 4] = 9
    found = segmenter(network, refined)
    with pytest.raises(ValueError, match="target holds 9 at flat index 1124; 0 to 3 are accepted"):
        found.count(torch.rand(2, 3, 32, 32), target, 4)


def test_count_names_a_target_of_another_shape(network):
    found, images = segmenter(network), torch.rand(2, 3, 32, 32)
    for shape in ((3, 32, 32), (1, 32, 32), (32, 32), (2, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"target must be \[2, H, W\], not \[[0-9, ]*32\]"):
            found.count(images, torch.zeros(shape, dtype=torch.uint8), 4)
    with pytest.raises(TypeError, match="target must be a tensor, not ndarray"):
        found.count(images, np.zeros((2, 32, 32), np.uint8), 4)


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("refined", [False, True])
def test_labels_have_the_images_size_at_any_scale(network, scale, refined):
    assert segmenter(network, refined, scale).segment(torch.rand(1, 3, 75, 90)).shape == (1, 75, 90)


def test_another_size_can_be_asked_for(network):
    assert segmenter(network).segment(torch.rand(1, 3, 64, 64), size=(20, 31)).shape == (1, 20, 31)
    for wrong in (5, (0, 5), (-1, 5), (4,), (1.5, 2)):
        with pytest.raises(ValueError, match="size must be two whole numbers"):
            segmenter(network).segment(torch.rand(1, 3, 32, 32), size=wrong)


def test_images_of_every_float_dtype(network):
    images = torch.rand(2, 3, 40, 50).half()
    labels = segmenter(network).segment(images.float())
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(segmenter(network).segment(images.to(dtype)), labels)
    for wrong in (images[0], images.byte(), images[:, :, :0], images[:, :1]):
        with pytest.raises(ValueError, match="images must"):
            segmenter(network).segment(wrong)
    with pytest.raises(TypeError, match="not ndarray"):
        segmenter(network).segment(images.numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_images_are_refused(network, bad):
    images = torch.rand(1, 3, 32, 32)
    images[0, 1, 3, 4] = bad
    with pytest.raises(ValueError, match="finite"):
        segmenter(network).segment(images)


class Noise(ImageSet):
    """Images made when they are asked for."""

    channels, dtype, classes, num_classes, has_labels = 3, np.dtype(np.uint8), None, 2, True

    def __init__(self, sizes):
        self.name, self.sizes, self.stems = "noise", sizes, [str(i) for i in range(len(sizes))]

    def read(self, index):
        return np.random.default_rng(index).integers(0, 256, (3, *self.sizes[index]), dtype=np.uint8), None

    def label(self, index):
        return (self.native_image(index)[0] > 127).astype(np.uint8)


def test_batches_are_runs_of_one_size():
    noise = Noise([(64, 64)] * 200 + [(30, 40)] + [(64, 64)] * 3)
    found = list(batches(noise))
    assert [i for chosen in found for i in chosen] == list(range(204))
    assert all(len({noise.sizes[i] for i in chosen}) == 1 for chosen in found)
    assert all(len(chosen) * 64 * 64 <= BATCH_PIXELS for chosen in found)


def test_evaluation_counts_every_pixel_of_mixed_sizes(network):
    noise = Noise([(64, 64)] * 5 + [(33, 70)] * 2 + [(20, 20)])
    scores = evaluate(segmenter(network), noise, torch.device("cpu"))
    assert scores["num_pixels"] == 5 * 64 * 64 + 2 * 33 * 70 + 400
    one = isf.ClusterMetrics(5, 2)
    for index in range(len(noise)):
        image = torch.from_numpy(noise.native_image(index)).float()[None] / 255
        one.update(segmenter(network).segment(image)[0], torch.from_numpy(noise.label(index)))
    assert abs(one.compute()["pixel_accuracy"] - scores["pixel_accuracy"]) < 1e-3


def test_memory_of_evaluation_does_not_grow_with_the_images(network):
    import resource

    def peak(number):
        evaluate(segmenter(network), Noise([(128, 128)] * number), torch.device("cpu"))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    settled = peak(400)  # the allocator's pools have grown to what a few batches need, or nearly
    grown = peak(2000) - settled
    assert grown < 60e6  # 1,600 images more are 105 MB with their labels, 315 MB as float32
