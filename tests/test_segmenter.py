"""Whole images of any size: tiles, padding, scale; evaluation in bounded memory."""

import dataclasses

import numpy as np
import pytest
import torch

import infoseg_fast as isf
from infoseg_fast import segmenter as module
from infoseg_fast.data.base import ImageSet
from infoseg_fast.model import MAX_DEPTH
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.recipe.refinement import colour_moments, refinement_of
from infoseg_fast.recipe.smoothing import MAX_RADIUS
from infoseg_fast.scores.evaluate import batches, evaluate


def trained(depth=2):
    model = isf.InfoSegNet(width=8, dim=16, num_classes=5, depth=depth)
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


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("groups", [None, [[0, 4], [1], [2, 3]]])
@pytest.mark.parametrize(("depth", "smooth"), [(0, 1), (2, 0), (MAX_DEPTH, MAX_RADIUS)])
@pytest.mark.parametrize("size", [(200, 230), (97, 400), (33, 35)])
def test_tiles_give_the_maps_of_the_whole_image(depth, smooth, size, groups, refined, monkeypatch):
    made = segmenter(trained(depth), refined and groups is None, smooth=smooth, temperature=3.0, groups=groups)
    images, target = torch.rand(2, 3, *size), torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    target[:, :10] = 255
    labels, counts = made.segment(images), made.count(images, target, 3)
    monkeypatch.setattr(module, "TILE", 96)
    monkeypatch.setattr(module, "MAX_PIXELS", 32 * 32)
    # Sums are formed in another order, so a pixel on the edge between two classes may fall to the
    # other side.
    assert (made.segment(images) != labels).float().mean() < 1e-3
    tiled = made.count(images, target, 3)
    assert (tiled - counts).abs().sum() < 2e-3 * counts.sum()
    assert counts.sum() == (target != 255).sum() == tiled.sum()


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
def test_count_refuses_a_target_out_of_range(network, refined):
    target = torch.zeros(1, 32, 32, dtype=torch.uint8)
    target[0, 3, 4] = 9
    found = segmenter(network, refined)
    with pytest.raises(ValueError, match="9"):
        found.count(torch.rand(1, 3, 32, 32), target, 4)


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("refined", [False, True])
def test_labels_have_the_images_size_at_any_scale(network, scale, refined):
    assert segmenter(network, refined, scale).segment(torch.rand(1, 3, 75, 90)).shape == (1, 75, 90)


def test_another_size_can_be_asked_for(network):
    assert segmenter(network).segment(torch.rand(1, 3, 64, 64), size=(20, 31)).shape == (1, 20, 31)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_images_are_refused(network, bad):
    images = torch.rand(1, 3, 32, 32)
    images[0, 1, 3, 4] = bad
    with pytest.raises(ValueError, match="finite"):
        segmenter(network).segment(images)


class Noise(ImageSet):
    """Images made when they are asked for."""

    def __init__(self, sizes):
        self.name, self.sizes, self.stems = "noise", sizes, [str(i) for i in range(len(sizes))]
        self.channels, self.dtype, self.classes, self.num_classes, self.has_labels = (
            3,
            np.dtype(np.uint8),
            None,
            2,
            True,
        )

    def read(self, index):
        return np.random.default_rng(index).integers(0, 256, (3, *self.sizes[index]), dtype=np.uint8), None

    def label(self, index):
        return (self.native_image(index)[0] > 127).astype(np.uint8)


def test_batches_are_runs_of_one_size():
    noise = Noise([(64, 64)] * 200 + [(30, 40)] + [(64, 64)] * 3)
    found = list(batches(noise))
    assert [i for chosen in found for i in chosen] == list(range(204))
    assert all(len({noise.sizes[i] for i in chosen}) == 1 for chosen in found)
    assert all(len(chosen) * 64 * 64 <= module.MAX_PIXELS for chosen in found)


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

    settled = peak(200)  # the allocator's pools have grown to what a few batches need
    grown = peak(1000) - settled
    assert grown < 25e6  # 800 images more are 52 MB with their labels, 157 MB as float32
