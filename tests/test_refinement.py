"""Labels at the pixels: the densities of the classes' colours, Bayes' rule, and its kernel."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_folder
from PIL import Image
from torch.distributions import MultivariateNormal

import infoseg_fast as isf
from infoseg_fast import checkpoint, reference
from infoseg_fast.config import TrainConfig
from infoseg_fast.data import open_set
from infoseg_fast.ops.dispatch import kernel
from infoseg_fast.recipe.refinement import (
    LEAST_DEVIATION,
    PASSES,
    RESOLUTION,
    SHARE,
    Refinement,
    class_colours,
    colours,
    fitted,
    pixel_colours,
    refined_labels,
    refined_probs,
    spread,
    uncertainty,
)
from infoseg_fast.train import Run, train


def problem(B=2, K=3, c=3, h=4, w=5, size=(16, 20), dtype=torch.float32):
    """prior, colour, around, residual, log_scale of random numbers."""
    prior = torch.softmax(2 * torch.randn(B, K, h, w, dtype=dtype), dim=1)
    shapes = (B, c, *size), (B, c, h, w), (K, c, 2 * c + 1), (K,)
    return prior, *(torch.randn(shape, dtype=dtype) for shape in shapes)


SHAPES = [
    {},
    {"c": 1, "K": 2, "B": 1, "h": 1, "w": 1, "size": (3, 5)},
    {"c": 2, "K": 27, "h": 7, "w": 9, "size": (28, 36)},
    {"c": 4, "K": 5, "h": 33, "w": 40, "size": (132, 160)},
    {"K": 256, "h": 3, "w": 3, "size": (12, 12)},
    {"K": 4, "h": 10, "w": 10, "size": (33, 39)},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_gives_the_labels_of_the_reference(shape, threads):
    given = problem(**shape)
    torch.set_num_threads(threads)
    try:
        found = kernel("refined_labels", "cpp").forward(*given)
    finally:
        torch.set_num_threads(1)
    exact = reference.refined_labels(*(x.double() for x in given))
    # Two classes whose scores are equal to rounding may change places.
    assert (found != exact).float().mean() < 1e-3


@pytest.mark.parametrize("shape", [*SHAPES[:-1], {"h": 5, "w": 3, "size": (15, 15)}, {"w": 50, "size": (4, 50)}])
@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_gives_the_probabilities_of_the_reference(shape, threads):
    given = problem(**shape)
    torch.set_num_threads(threads)
    try:
        found = refined_probs(*given, backend="cpp")
    finally:
        torch.set_num_threads(1)
    exact = reference.refined_probs(*(x.double() for x in given))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6)
    assert torch.equal(refined_probs(*given, backend="cpp"), found)


def test_probabilities_are_means_over_the_pixels_of_a_position():
    given = [x.double() for x in problem(B=1)]
    scores = reference.refined_scores(given[0][0], given[1][0], given[2][0], *given[3:])
    expected = scores.softmax(dim=0).unflatten(2, (5, 4)).unflatten(1, (4, 4)).mean(dim=(2, 4))
    torch.testing.assert_close(refined_probs(*given)[0], expected)


def test_positions_of_parts_of_pixels_and_of_many_are_the_references():
    for size in ((33, 39), (4 * 9, 5 * 9)):
        given = problem(size=size)
        assert torch.equal(refined_probs(*given), reference.refined_probs(*given))
        with pytest.raises(ValueError, match=r"'cpp' takes positions of whole pixels, at most 64, not \[4, 5\] of"):
            refined_probs(*given, backend="cpp")


@pytest.mark.parametrize("op", ["refined_labels", "refined_probs"])
def test_strided_and_empty_input_is_taken_as_it_is(op):
    given = problem()
    strided = [x.mT.contiguous().mT if x.dim() > 1 else x for x in given]
    forward = kernel(op, "cpp").forward
    assert torch.equal(forward(*strided), forward(*given))
    assert len(forward(*problem(B=0))) == 0


def test_nan_gives_some_label_and_stays_with_its_neighbours():
    prior, *others = problem(h=8, w=8, size=(32, 32))
    prior[0, :, 1, 1] = float("nan")
    for forward in (kernel("refined_labels", "cpp").forward, reference.refined_labels):
        assert forward(prior, *others).max() < 3
    for forward in (kernel("refined_probs", "cpp").forward, reference.refined_probs):
        found = forward(prior, *others)
        assert torch.isfinite(found[0, :, 3:]).all() and torch.isfinite(found[1]).all()


def test_density_is_that_of_a_conditional_normal_distribution():
    images, probs = torch.rand(3, 2, 32, 40), torch.softmax(3 * torch.randn(3, 4, 8, 10), dim=1)
    moments = class_colours(probs, images, None, 0)
    found = fitted(moments, 0)
    pixels, around = colours(images, (8, 10), 0)
    prior = torch.full((4, 8, 10), 0.25)  # log prior is one constant
    scores = reference.refined_scores(prior, pixels[0], around[0], found.residual, found.log_scale)
    seen = torch.cat([pixels, F.interpolate(around, size=(32, 40), mode="bilinear")], dim=1)[0].flatten(1).mT.double()
    total = moments.sum(dim=0)
    variance = (total.diagonal()[1:] / total[0, 0] - (total[0, 1:] / total[0, 0]).square()).clamp_min(
        LEAST_DEVIATION**2
    )
    expected = []
    for of_class in moments + SHARE * total:
        mean = of_class[0, 1:] / of_class[0, 0]
        covariance = of_class[1:, 1:] / of_class[0, 0] - torch.outer(mean, mean) + RESOLUTION**2 * variance.diag()
        whole, condition = MultivariateNormal(mean, covariance), MultivariateNormal(mean[2:], covariance[2:, 2:])
        expected.append(whole.log_prob(seen) - condition.log_prob(seen[:, 2:]))
    difference = scores.flatten(1).double() - torch.stack(expected)
    assert (difference - difference.mean()).abs().max() < 2e-4


def test_moments_are_sums_over_pixels_with_their_positions_probabilities():
    images, probs, mask = torch.rand(2, 3, 16, 12), torch.rand(2, 5, 4, 3), torch.rand(2, 4, 3) > 0.3
    found = class_colours(probs, images, mask, 1)
    pixels, around = colours(images, (4, 3), 1)
    u = torch.cat([torch.ones(2, 1, 16, 12), pixels, F.interpolate(around, size=(16, 12), mode="bilinear")], dim=1)
    weights = (probs * mask[:, None]).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    expected = torch.einsum("bkyx,biyx,bjyx->kij", weights.double(), u.double(), u.double()) / 16
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    parts = sum(class_colours(probs[b : b + 1], images[b : b + 1], mask[b : b + 1], 1) for b in range(2))
    torch.testing.assert_close(found, parts)


def two_colours() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of two colours and a little noise, whose edges lie anywhere within the cells, and their labels."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    labels = torch.stack([x + y // 3 > n for n in range(11, 27)]).long()
    dark_and_bright = torch.tensor([[0.3, 0.4, 0.5], [0.6, 0.5, 0.4]])
    return dark_and_bright[labels].movedim(3, 1) + 0.02 * torch.randn(16, 3, 32, 32), labels


def cells(labels: torch.Tensor) -> torch.Tensor:
    """Probabilities of the positions: the shares of the classes in their cells, none sure."""
    return 0.1 + 0.8 * F.avg_pool2d(F.one_hot(labels).movedim(3, 1).float(), 4)


def test_labels_follow_edges_within_the_positions():
    images, labels = two_colours()
    probs = cells(labels)
    refinement = fitted(class_colours(probs, images, None, 0), 0)
    coarse = isf.segment(probs, torch.eye(2).expand(16, -1, -1), size=(32, 32), interpolate="logits")
    found = refined_labels(probs, colours(images, (8, 8), 0), refinement, (32, 32))
    wrong, before = ((x != labels).float().mean() for x in (found, coarse))
    assert wrong < 0.001 < 0.005 < before


def test_colours_that_tell_nothing_change_nothing_but_the_spread():
    probs = cells(two_colours()[1])
    images = torch.rand(16, 3, 32, 32)
    refinement = fitted(class_colours(torch.full_like(probs, 0.5), images, None, 0), 0)
    found = refined_labels(probs, colours(images, (8, 8), 0), refinement, (32, 32))
    around = F.avg_pool2d(F.avg_pool2d(F.pad(probs, (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)
    torch.testing.assert_close(spread(probs), around)
    plain = isf.segment(around, torch.eye(2).expand(16, -1, -1), size=(32, 32), interpolate="logits")
    assert (found != plain).float().mean() < 1e-3  # of probabilities that are equal to rounding


def test_passes_are_a_mean_field():
    images, labels = two_colours()
    probs, seen = cells(labels), colours(images, (8, 8), 0)
    refinement = fitted(class_colours(probs, images, None, 0), 0)._replace(passes=2)
    given = *seen, refinement.residual, refinement.log_scale
    now = probs
    for _ in range(2):
        now = 0.2 * probs + 0.8 * reference.refined_probs(spread(now), *given)
    expected = reference.refined_labels(spread(now), *given)
    found = refined_labels(probs, seen, refinement, (32, 32))
    assert (found != expected).float().mean() < 1e-3


def test_passes_let_neighbours_speak_where_a_pixel_alone_is_in_doubt():
    """Colours with as much noise as they differ, and positions of which the network knows little."""
    images, labels = two_colours()
    images = (images + 0.12 * torch.randn_like(images)).clamp(0, 1)
    probs = 0.5 + 0.1 * (cells(labels) - 0.5)
    once = fitted(class_colours(cells(labels), images, None, 0), 0)
    wrong = [
        (refined_labels(probs, colours(images, (8, 8), 0), refinement, (32, 32)) != labels).float().mean()
        for refinement in (once, once._replace(passes=2))
    ]
    assert wrong[1] < 0.7 * wrong[0]


def test_moments_of_pixels_are_weighted_with_their_own_probabilities():
    images, labels = two_colours()
    probs, mask = cells(labels), torch.rand(16, 8, 8) > 0.3
    refinement = fitted(class_colours(probs, images, None, 0), 0)._replace(passes=1)
    found = pixel_colours(probs, images, mask, refinement)
    y, s = colours(images, (8, 8), 0)
    given = refinement.residual, refinement.log_scale
    prior = spread(0.2 * probs + 0.8 * reference.refined_probs(spread(probs), y, s, *given))
    u = torch.cat([torch.ones(16, 1, 32, 32), y, F.interpolate(s, size=(32, 32), mode="bilinear")], dim=1).double()
    told = [reference.refined_scores(prior[b], y[b], s[b], *given).softmax(dim=0) for b in range(16)]
    counted = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    expected = torch.einsum("bkyx,byx,biyx,bjyx->kij", torch.stack(told).double(), counted.double(), u, u) / 16
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    parts = [pixel_colours(probs[i : i + 8], images[i : i + 8], mask[i : i + 8], refinement) for i in (0, 8)]
    torch.testing.assert_close(sum(parts), found)


def test_densities_of_pixels_are_nearer_to_those_of_the_classes():
    """Cells that an edge crosses have the colours of both classes, and their probabilities are of both."""
    images, labels = two_colours()
    probs = cells(labels)
    first = fitted(class_colours(probs, images, None, 0), 0)._replace(passes=2)
    anew = pixel_colours(probs, images, None, first)
    means = [m[:, 1:4, 0] / m[:, :1, 0] for m in (class_colours(probs, images, None, 0), anew)]
    y = (images + 0.05).log().movedim(1, 3)
    truth = torch.stack([y[labels == k].mean(dim=0) for k in (0, 1)])
    wrong = [(mean - truth).abs().max() for mean in means]
    assert wrong[1] < 0.6 * wrong[0]


def test_uncertainty_is_that_of_the_pixels_and_adds_up():
    images, labels = two_colours()
    probs, mask = cells(labels), torch.rand(16, 8, 8) > 0.3
    refinement = fitted(class_colours(probs, images, None, 0), 0)
    before, after = uncertainty(probs, images, mask, refinement)
    given = *colours(images, (8, 8), 0), refinement.residual, refinement.log_scale
    expected = 0
    for b in range(16):
        told = reference.refined_scores(spread(probs)[b], given[0][b], given[1][b], *given[2:]).softmax(dim=0)
        expected += (torch.special.entr(told).sum(dim=0)[mask[b].repeat_interleave(4, 0).repeat_interleave(4, 1)]).sum()
    torch.testing.assert_close(after, expected.double() / 16, rtol=1e-5, atol=1e-5)
    entropies = torch.special.entr(spread(probs)).sum(dim=1)
    torch.testing.assert_close(before, entropies[mask].sum().double(), rtol=1e-5, atol=1e-5)
    parts = [uncertainty(probs[i : i + 8], images[i : i + 8], mask[i : i + 8], refinement) for i in (0, 8)]
    torch.testing.assert_close(sum(parts), torch.stack([before, after]))
    assert after < 0.6 * before
    noise = torch.rand(16, 3, 32, 32)
    refinement = fitted(class_colours(probs, noise, None, 0), 0)
    before, after = uncertainty(probs, noise, mask, refinement)
    assert 0.98 * before < after


def test_class_that_is_nowhere_gets_no_pixel():
    images, labels = two_colours()
    probs = cells(labels)
    probs = torch.cat([probs, torch.zeros_like(probs[:, :1])], dim=1)
    refinement = fitted(class_colours(probs, images, None, 0), 0)
    assert torch.isfinite(refinement.residual).all() and torch.isfinite(refinement.log_scale).all()
    assert refined_labels(probs, colours(images, (8, 8), 0), refinement, (32, 32)).max() == 1


def test_images_of_one_colour_have_a_refinement():
    refinement = fitted(class_colours(torch.rand(2, 3, 8, 8), torch.full((2, 1, 32, 32), 0.25), None, 0), 0)
    assert torch.isfinite(refinement.residual).all() and torch.isfinite(refinement.log_scale).all()


def test_labels_of_another_size_are_of_upsampled_scores():
    images, labels = two_colours()
    probs = cells(labels)
    refinement = fitted(class_colours(probs, images, None, 0), 0)
    large = refined_labels(probs, colours(images, (8, 8), 0), refinement, (64, 64))
    truth = labels.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert (large != truth).float().mean() < 0.03
    with pytest.raises(ValueError, match="'cpp' takes labels of the pixels' size"):
        refined_labels(probs, colours(images, (8, 8), 0), refinement, (64, 64), backend="cpp")
    none = [x[:0] for x in (probs, *colours(images, (8, 8), 0))]
    assert refined_labels(none[0], type(colours(images, (8, 8), 0))(*none[1:]), refinement, (32, 32)).shape == (
        0,
        32,
        32,
    )


def test_run_keeps_its_refinement_and_can_do_without(tmp_path):
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    settings = {"data": data, "steps": 4, "crop": 32, "batch_size": 4, "width": 8, "eval_every": 0, "overcluster": 1.0}
    images = torch.rand(2, 3, 48, 40)
    labels = {}
    for name, refine in (("with", True), ("without", False)):
        train(settings | {"refine": refine}, tmp_path / name)
        segmenter = isf.load(tmp_path / name)
        labels[name] = segmenter.segment(images)
        assert (segmenter.refinement is not None) == refine
    assert checkpoint.load(tmp_path / "with")["prediction"]["refinement"]["residual"].shape == (2, 3, 7)
    assert not torch.equal(labels["with"], labels["without"])
    segmenter = isf.load(tmp_path / "with")
    segmenter.refinement = None
    assert torch.equal(segmenter.segment(images), labels["without"])  # training is the same


def test_crops_without_a_pixel_that_counts_give_none(tmp_path):
    data = write_folder(tmp_path / "data", number=6, side=32)
    for path in (data / "labels").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    (data / "classes.txt").write_text("a\nb\n")
    config = TrainConfig(data=str(data), classes=2, crop=32, batch_size=4, width=8, smooth=0, loss_mask="gt")
    config.complete()
    run = Run(config, open_set(str(data), "train", num_classes=2), torch.device("cpu"), None)
    assert run.refinement() is None


@pytest.mark.parametrize("told", [True, False])
def test_passes_are_made_where_pixels_tell_classes_apart(tmp_path, told, monkeypatch):
    data = str(write_folder(tmp_path / "data", number=6, side=32))
    small = {"steps": 2, "crop": 32, "batch_size": 4, "width": 8, "dim": 16, "eval_every": 0, "overcluster": 1.0}
    monkeypatch.setattr(
        "infoseg_fast.train.uncertainty", lambda *_: torch.tensor([8.0, 6.9 if told else 7.1], dtype=torch.float64)
    )
    train(small | {"data": data}, tmp_path / "run")
    assert isf.load(tmp_path / "run").refinement.passes == (PASSES if told else 0)
    train(small | {"data": data, "passes": 3}, tmp_path / "three")
    assert isf.load(tmp_path / "three").refinement.passes == 3
    with pytest.raises(isf.DataError, match="--passes must be at most 8, not 9"):
        train(small | {"data": data, "passes": 9}, tmp_path / "nine")


def test_paper_recipe_has_none(tmp_path):
    data = str(write_folder(tmp_path / "data", number=6, side=32))
    small = {"steps": 2, "crop": 32, "batch_size": 4, "width": 8, "dim": 16, "eval_every": 0}
    train(small | {"data": data, "recipe": "paper"}, tmp_path / "run")
    assert isf.load(tmp_path / "run").refinement is None


def test_checkpoints_of_before_there_was_refinement_load(tmp_path):
    data = str(write_folder(tmp_path / "data", number=6, side=32))
    small = {"steps": 2, "crop": 32, "batch_size": 4, "width": 8, "dim": 16, "eval_every": 0}
    train(small | {"data": data}, tmp_path / "run")
    path = checkpoint.path_of(tmp_path / "run", "last")
    state = torch.load(path, weights_only=True)
    del state["prediction"]["refinement"]
    torch.save(state, path)
    assert isf.load(tmp_path / "run").refinement is None


def test_refinement_moves_between_devices_as_a_whole():
    moved = Refinement(torch.zeros(2, 1, 3), torch.zeros(2), 1, 2).to("meta")
    assert moved.residual.is_meta and moved.log_scale.is_meta and moved.radius == 1 and moved.passes == 2


def test_runs_from_before_there_were_passes_make_labels_without(tmp_path):
    data = str(write_folder(tmp_path / "data", number=6, side=32))
    small = {"steps": 2, "crop": 32, "batch_size": 4, "width": 8, "dim": 16, "eval_every": 0}
    train(small | {"data": data, "passes": PASSES}, tmp_path / "run")
    assert isf.load(tmp_path / "run").refinement.passes == PASSES
    path = checkpoint.path_of(tmp_path / "run", "last")
    state = torch.load(path, weights_only=True)
    del state["prediction"]["refinement"]["passes"]
    torch.save(state, path)
    assert isf.load(tmp_path / "run").refinement.passes == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    del record["config"]["passes"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    train({"data": data, "steps": 3}, tmp_path / "run", resume=True)
    assert isf.load(tmp_path / "run").refinement.passes == 0
