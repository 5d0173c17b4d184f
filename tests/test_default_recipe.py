"""The default recipe: its parts, what each adds to labels, and its runs."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image

import infoseg_fast as isf
from infoseg_fast.cli import main
from infoseg_fast.config import Settings
from infoseg_fast.errors import DataError
from infoseg_fast.model import position_mask
from infoseg_fast.ops.appearance_statistics import appearance_statistics
from infoseg_fast.recipe import DataInfo, recipe_class
from infoseg_fast.recipe.labelling import Labelling, grouped
from infoseg_fast.recipe.overclustering import OverClusters
from infoseg_fast.recipe.resampling import block_statistics, resampled_merge
from infoseg_fast.recipe.sample import Sample
from infoseg_fast.run_folder import RunFolder
from infoseg_fast.train import train

SMALL = {
    "crop": 32, "width": 8, "dim": 16, "batch_size": 4, "log_every": 1, "checkpoint_every": 3, "eval_every": 0,
    "classes": 3, "steps": 8,
}  # fmt: skip


@pytest.fixture
def how(tmp_path) -> dict:
    return SMALL | {"data": str(write_folder(tmp_path / "data", number=10, side=40))}


def recipe(**given):
    """A recipe of three classes, and a sample of images."""
    torch.manual_seed(3)
    settings = Settings.create({"data": "any", "classes": 3, "width": 8, "dim": 16, "crop": 32} | given)
    made = recipe_class(settings.recipe)(settings, DataInfo(3, settings.classes, None, [0.5] * 3, [0.3] * 3))
    images = torch.rand(8, 3, 32, 32)
    return made, Sample(lambda: iter([(images[:4], None), (images[4:], None)]))


def same(a, b) -> bool:
    """Whether two states hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[key]) for key, x in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_labels_are_of_merged_classes_of_the_averaged_network():
    made, sample = recipe(smooth=0)
    labelling = made.labelling(sample)
    assert same(labelling.network.state_dict(), made.network.average.state_dict())
    assert labelling.num_clusters == 3 and labelling.refinement.residual.shape[0] == 3
    images = torch.cat([x for x, _ in sample.batches])
    probs = Labelling(made.network.frozen(), {}, made.data).probabilities(images)
    found = block_statistics([(probs, appearance_statistics(isf.local_appearance(images, (8, 8))), None)])
    assert labelling.groups == resampled_merge(found, 3)
    assert sorted(itertools.chain(*labelling.groups)) == list(range(9))
    torch.testing.assert_close(labelling.probabilities(images), grouped(probs, labelling.groups))


def test_a_network_that_is_not_finite_makes_labels_too():
    made, sample = recipe()
    with torch.no_grad():
        made.network.average.local_projection.weight.fill_(torch.nan)
    labelling = made.labelling(sample)
    assert labelling.num_clusters == 3
    assert isf.Segmenter(labelling).segment(torch.rand(1, 3, 32, 32)).max() < 3


@pytest.mark.parametrize("refine", [True, False])
def test_one_labelling_gives_maps_of_any_number_of_classes(refine):
    made, sample = recipe(refine=refine)
    labelling = Labelling.from_state(copy.deepcopy(made.labelling(sample).state()))
    images = torch.rand(2, 3, 32, 32)
    for number in range(2, 10):
        other = labelling.with_clusters(number)
        assert other.num_clusters == number == other.probabilities(images).shape[1]
        assert (other.groups is None) == (number == 9)
        assert isf.Segmenter(other).segment(images).max() < number
    expected = recipe(classes=4, overcluster=2.25, refine=refine)[0]
    expected.load_state_dict(made.state_dict())
    groups, refinement = (getattr(expected.labelling(sample), name) for name in ("groups", "refinement"))
    found = labelling.with_clusters(4)
    assert found.groups == groups and (refinement is None) == (found.refinement is None)
    if refine:
        torch.testing.assert_close(found.refinement.residual, refinement.residual)
    for number in (1, 10, 2.5):
        with pytest.raises(DataError, match=f"a whole number from 2 to the run's 9 over-clusters, not {number}"):
            labelling.with_clusters(number)
    with pytest.raises(DataError, match="no over-clusters"):
        dataclasses.replace(labelling, over_clusters=None).with_clusters(2)


def test_predict_writes_maps_of_the_number_of_classes_that_is_asked_for(how, tmp_path, capsys):
    train(out=tmp_path / "run", **how)
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "data" / "images"), "--out"]
    found = {}
    for number in (None, 3, 2, 9):
        out = tmp_path / f"maps{number}"
        assert main([*command, str(out), *([] if number is None else ["--classes", str(number)])]) == 0
        found[number] = np.stack([np.asarray(Image.open(path)) for path in sorted(out.rglob("*.png"))])
        assert found[number].max() < (number or 3)
    assert np.array_equal(found[None], found[3])
    expected = isf.load(tmp_path / "run").with_clusters(9)
    image = min((tmp_path / "data" / "images").iterdir())
    assert np.array_equal(expected.segment_file(image), found[9][0])
    capsys.readouterr()
    assert main([*command, str(tmp_path / "none"), "--classes", "10"]) == 2
    assert "--classes must be a whole number from 2 to the run's 9 over-clusters, not 10" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none"), "--classes", "2", "--match"]) == 2
    assert not (tmp_path / "none").exists()


def test_densities_of_groups_are_those_of_their_summed_probabilities():
    made, sample = recipe(smooth=1)
    labelling = made.labelling(sample)
    probs = [labelling.probabilities(images) for images, _ in sample.batches]
    whole = OverClusters.of(probs, sample, 1, refine=True).refinement(None, 1)
    for x, y in zip(labelling.refinement[:2], whole[:2], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def test_batches_with_and_without_padding_share_one_scale():
    """Where a batch has no mask every position counts. The statistics are those of all batches
    together.
    """
    images = torch.rand(6, 3, 32, 32)
    mask = torch.ones(3, 32, 32, dtype=torch.bool)
    mask[:, 20:] = False
    sample = Sample(lambda: iter([(images[:3], None), (images[3:], mask)]))
    whole = torch.cat([torch.ones(3, 8, 8, dtype=torch.bool), position_mask(mask, images)])
    expected = appearance_statistics(isf.local_appearance(images, (8, 8)), whole)
    torch.testing.assert_close(torch.cat(sample.statistics(0)), expected)


def test_a_labelling_sweeps_the_sample_once(monkeypatch):
    made, sample = recipe()
    calls = []
    probabilities = Labelling.probabilities
    monkeypatch.setattr(Labelling, "probabilities", lambda self, *x: calls.append(1) or probabilities(self, *x))
    made.labelling(sample)
    assert len(calls) == len(sample.batches)


def test_a_labelling_is_frozen_while_training_goes_on():
    made, sample = recipe()
    labelling, images = made.labelling(sample), torch.rand(4, 3, 32, 32)
    before = labelling.probabilities(images)
    made.train().loss(0, images, None).backward()
    with torch.no_grad():
        for x in made.parameters():
            x.add_(1.0)
    made.after_step(0)
    assert torch.equal(labelling.probabilities(images), before)


def test_a_labelling_is_the_same_after_its_state():
    made, sample = recipe()
    labelling, images = made.labelling(sample), torch.rand(2, 3, 40, 36)
    again = Labelling.from_state(copy.deepcopy(labelling.state()))
    assert torch.equal(isf.Segmenter(again).segment(images), isf.Segmenter(labelling).segment(images))
    with pytest.raises(DataError, match="cannot be imported"):
        Labelling.from_state(labelling.state() | {"builder": "nowhere:Net"})
    with pytest.raises(DataError, match="builds another network"):
        Labelling.from_state(labelling.state() | {"arguments": labelling.arguments | {"width": 5}})


def test_a_run_in_parts_has_the_same_bits(how, tmp_path, without_curves):
    train(out=tmp_path / "whole", **how)
    whole = RunFolder(tmp_path / "whole").load()
    for stops in ((2, 5), (3,)):
        out = tmp_path / f"parts {stops}"
        train(out=out, **how | {"steps": stops[0]})
        for steps in (*stops[1:], 8):
            train(None, out, resume=True, steps=steps)
        parts = RunFolder(out).load()
        for key in ("recipe", "optimizer", "labelling", "step"):
            assert same(whole[key], parts[key]), (stops, key)


@pytest.mark.parametrize(
    ("settings", "number"), [({}, 9), ({"recipe": "paper"}, 3), ({"overcluster": 1.1}, 3), ({"overcluster": 1e9}, 256)]
)
def test_the_network_has_a_multiple_of_the_classes(settings, number):
    assert recipe(**settings)[0].network.model.num_classes == number


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"refine": False}, "refinement"),
        ({"recipe": "paper"}, "refinement"),
        ({"overcluster": 1.0}, "groups"),
        ({"recipe": "paper"}, "over_clusters"),
    ],
)
def test_a_part_can_be_left_out(settings, missing):
    made, sample = recipe(**settings)
    assert getattr(made.labelling(sample), missing) is None


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_labels_are_made_by_the_averaged_weights(decay):
    made, sample = recipe(average=decay, overcluster=1.0)
    made.train().loss(0, torch.rand(4, 3, 32, 32), None).backward()
    torch.optim.SGD([x for x in made.parameters() if x.requires_grad], lr=0.1).step()
    made.after_step(0)
    used = made.labelling(sample).network.state_dict()
    assert same(used, (made.network.average if decay else made.network.model).state_dict())
    assert same(used, made.network.model.state_dict()) == (not decay)


def test_classes_in_use_are_between_one_and_all():
    made, _ = recipe()
    made.loss(0, torch.rand(4, 3, 32, 32), None)
    assert 1 <= made.metrics()["classes_in_use"] <= 9


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2]], [[0], [1, 3]], [[0, 1, 2], [3]]])
def test_groups_that_are_no_partition_are_refused(groups):
    network = isf.InfoSegNet(3, num_classes=3, width=4, dim=8).eval()
    with pytest.raises(ValueError, match="groups must have each of the 3 classes once"):
        Labelling(network, {}, DataInfo(3, 3, None, [0.5] * 3, [0.3] * 3), groups=groups)


@pytest.mark.parametrize("name", ["default", "paper"])
def test_a_batch_without_a_pixel_that_counts_changes_no_weight(name):
    made, _ = recipe(recipe=name)
    loss = made.loss(0, torch.rand(4, 3, 32, 32), torch.zeros(4, 32, 32, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert all(not x.grad.any() for x in made.parameters() if x.grad is not None)
