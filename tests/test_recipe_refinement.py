"""Refinement at the pixels: the densities of the classes' colours, and the labels that they give."""

import torch
import torch.nn.functional as F
from conftest import write_folder
from torch.distributions import MultivariateNormal

import infoseg_fast as isf
from infoseg_fast.recipe.overclustering import OverClusters
from infoseg_fast.recipe.refinement import (
    MIN_DEVIATION,
    PRIOR_SHARE,
    RESOLUTION,
    Colours,
    Refinement,
    colour_moments,
    colours_of,
    refinement_of,
    spread,
)
from infoseg_fast.recipe.sample import Sample
from infoseg_fast.reference.refined_labels import batch_scores
from infoseg_fast.train import train


def test_density_is_that_of_a_conditional_normal_distribution():
    images, probs = torch.rand(3, 2, 32, 40), torch.softmax(3 * torch.randn(3, 4, 8, 10), dim=1)
    moments = colour_moments(probs, images, None, 0)
    found = refinement_of(moments, 0)
    pixels, around = colours_of(images, (8, 10), 0)
    prior = torch.full((3, 4, 8, 10), 0.25)  # log prior is one constant
    scores = batch_scores(prior, pixels, around, found.residual, found.log_scale)[0]
    seen = torch.cat([pixels, F.interpolate(around, size=(32, 40), mode="bilinear")], dim=1)[0].flatten(1).mT.double()
    total = moments.sum(dim=0)
    variance = (total.diagonal()[1:] / total[0, 0] - (total[0, 1:] / total[0, 0]).square()).clamp_min(MIN_DEVIATION**2)
    expected = []
    for of_class in moments + PRIOR_SHARE * total:
        mean = of_class[0, 1:] / of_class[0, 0]
        covariance = of_class[1:, 1:] / of_class[0, 0] - torch.outer(mean, mean) + RESOLUTION**2 * variance.diag()
        whole, condition = MultivariateNormal(mean, covariance), MultivariateNormal(mean[2:], covariance[2:, 2:])
        expected.append(whole.log_prob(seen) - condition.log_prob(seen[:, 2:]))
    difference = scores.flatten(1).double() - torch.stack(expected)
    assert (difference - difference.mean()).abs().max() < 2e-4


def test_moments_are_sums_over_pixels_with_their_positions_probabilities():
    images, probs, mask = torch.rand(2, 3, 16, 12), torch.rand(2, 5, 4, 3), torch.rand(2, 4, 3) > 0.3
    found = colour_moments(probs, images, mask, 1)
    pixels, around = colours_of(images, (4, 3), 1, mask)
    u = torch.cat([torch.ones(2, 1, 16, 12), pixels, F.interpolate(around, size=(16, 12), mode="bilinear")], dim=1)
    weights = (probs * mask[:, None]).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    expected = torch.einsum("bkyx,biyx,bjyx->kij", weights.double(), u.double(), u.double()) / 16
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    parts = sum(colour_moments(probs[b : b + 1], images[b : b + 1], mask[b : b + 1], 1) for b in range(2))
    torch.testing.assert_close(found, parts)


def two_colours() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of two colours and a little noise, whose edges lie anywhere within the cells, and
    their labels.
    """
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
    refinement = refinement_of(colour_moments(probs, images, None, 0), 0)
    coarse = isf.segment(probs, torch.eye(2).expand(16, -1, -1), size=(32, 32), interpolate="logits")
    found = refinement.labels(probs, colours_of(images, (8, 8), 0))
    wrong, before = ((x != labels).float().mean() for x in (found, coarse))
    assert wrong < 0.001 < 0.005 < before


def test_colours_that_tell_nothing_change_nothing_but_the_spread():
    probs = cells(two_colours()[1])
    images = torch.rand(16, 3, 32, 32)
    refinement = refinement_of(colour_moments(torch.full_like(probs, 0.5), images, None, 0), 0)
    found = refinement.labels(probs, colours_of(images, (8, 8), 0))
    around = F.avg_pool2d(F.avg_pool2d(F.pad(probs, (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)
    torch.testing.assert_close(spread(probs), around)
    plain = isf.segment(around, torch.eye(2).expand(16, -1, -1), size=(32, 32), interpolate="logits")
    assert (found != plain).float().mean() < 1e-3  # of probabilities that are equal to rounding


def test_class_that_is_nowhere_gets_no_pixel():
    images, labels = two_colours()
    probs = cells(labels)
    probs = torch.cat([probs, torch.zeros_like(probs[:, :1])], dim=1)
    refinement = refinement_of(colour_moments(probs, images, None, 0), 0)
    assert torch.isfinite(refinement.residual).all() and torch.isfinite(refinement.log_scale).all()
    assert refinement.labels(probs, colours_of(images, (8, 8), 0)).max() == 1


def test_images_of_one_colour_have_a_refinement():
    refinement = refinement_of(colour_moments(torch.rand(2, 3, 8, 8), torch.full((2, 1, 32, 32), 0.25), None, 0), 0)
    assert torch.isfinite(refinement.residual).all() and torch.isfinite(refinement.log_scale).all()


def test_no_image_has_no_label():
    images, labels = two_colours()
    probs = cells(labels)
    refinement = refinement_of(colour_moments(probs, images, None, 0), 0)
    none = [x[:0] for x in (probs, *colours_of(images, (8, 8), 0))]
    assert refinement.labels(none[0], Colours(*none[1:])).shape == (0, 32, 32)


def test_run_keeps_its_refinement_and_trains_the_same_without(tmp_path):
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    settings = {"data": data, "steps": 4, "crop": 32, "batch_size": 4, "width": 8, "eval_every": 0, "overcluster": 1.0}
    settings["position"] = "off"
    images, labels = torch.rand(2, 3, 48, 40), {}
    for name, refine in (("with", True), ("without", False)):
        train(out=tmp_path / name, **settings | {"refine": refine})
        labels[name] = isf.load(tmp_path / name)
        assert (labels[name].labelling.refinement is not None) == refine
    assert labels["with"].labelling.refinement.residual.shape == (2, 3, 7)
    assert not torch.equal(*(one.segment(images) for one in labels.values()))
    assert torch.equal(*(one.labelling.probabilities(images) for one in labels.values()))


def test_sample_without_a_pixel_that_counts_gives_none():
    images, nothing = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    sample = Sample(lambda: iter([(images, nothing)]))
    sums = OverClusters.of([torch.full((2, 2, 8, 8), 0.5)], sample, 0, refine=True)
    assert sums.refinement(None, 0) is None


def test_refinement_moves_between_devices_as_a_whole():
    moved = Refinement(torch.zeros(2, 1, 3), torch.zeros(2), 1).to("meta")
    assert moved.residual.is_meta and moved.log_scale.is_meta and moved.radius == 1


def test_the_surroundings_leave_out_positions_without_data():
    images, mask = torch.rand(1, 3, 64, 80), torch.ones(1, 16, 20, dtype=torch.bool)
    plain = colours_of(images, (16, 20), 0)
    assert torch.allclose(colours_of(images, (16, 20), 0, mask).around, plain.around, atol=1e-6)
    mask[:, :, :7] = False
    images[:, :, :, 28:] = 0.5
    found = colours_of(images, (16, 20), 0, mask).around
    assert torch.allclose(found[..., 2:], torch.full_like(found[..., 2:], 0.55).log(), atol=1e-6)
    assert torch.allclose(found[..., :2], plain.around[..., :2], atol=1e-6)  # where none counts, all do
