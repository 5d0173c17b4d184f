"""Classes that are taken together: what partitions tell, which one is found, and a run that trains two networks."""

import itertools
import math

import pytest
import torch
from conftest import write_folder

import infoseg_fast as isf
from infoseg_fast import checkpoint
from infoseg_fast.errors import DataError
from infoseg_fast.recipe.appearance import appearance_information, appearance_statistics
from infoseg_fast.recipe.merging import CLEARLY, Sums, _improved, _joined, _Pairs, merged, sums_of, told
from infoseg_fast.train import train

SMALL = {"crop": 32, "width": 8, "dim": 16, "batch_size": 4, "log_every": 1, "checkpoint_every": 3, "eval_every": 0}


def example(classes: int, images: int = 6, masked: bool = False):
    """Probabilities, appearance and mask that have something to do with each other, float64."""
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(images, classes, 5, 7, generator=generator, dtype=torch.float64)
    logits += torch.randn(images, classes, 1, 1, generator=generator, dtype=torch.float64)
    y = logits[:, :3] + torch.randn(images, 3, 5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(images, 5, 7, generator=generator) > 0.3 if masked else None
    return logits.softmax(dim=1), y, mask


def sums(classes: int) -> Sums:
    probs, y, _ = example(classes)
    return sums_of(probs, appearance_statistics(y))


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_told_is_the_two_informations_and_how_little_positions_of_an_image_have_in_common(masked):
    probs, y, mask = example(4, masked=masked)
    found = told(sums_of(probs, appearance_statistics(y, mask), mask))
    assert float(found.appearance) == pytest.approx(float(appearance_information(probs, y, mask)))
    inside = [image[:, here].mean(dim=1) for image, here in zip(probs, mask if masked else [...] * 6, strict=True)]
    if not masked:
        inside = [image.mean(dim=(1, 2)) for image in probs]
    joint = sum(torch.outer(x, x) for x in inside) / 6
    information = sum(
        float(joint[k, j] * (joint[k, j] / joint[k].sum() / joint[j].sum()).log())
        for k, j in itertools.product(range(4), repeat=2)
    )
    assert float(found.image) == pytest.approx(information)
    assert float(found.differing) == pytest.approx(-math.log(joint.diagonal().sum()))


def test_sums_of_batches_add_up_and_an_image_without_a_position_that_counts_adds_nothing():
    probs, y, mask = example(4, masked=True)
    mask[2] = False
    statistics = appearance_statistics(y, mask)
    whole = sums_of(probs, statistics, mask)
    parts = [sums_of(probs[part], statistics[part], mask[part]) for part in (slice(0, 2), slice(2, 6))]
    for x, y in zip(whole, (sum(x) for x in zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(x, y)
    assert float(whole.together.sum()) == pytest.approx(5)


def test_taking_classes_together_is_adding_their_probabilities():
    probs, y, _ = example(5)
    statistics, groups = appearance_statistics(y), [[1, 4], [0], [2, 3]]
    together = torch.stack([probs[:, group].sum(dim=1) for group in groups], dim=1)
    for x, y in zip(sums_of(probs, statistics).grouped(groups), sums_of(together, statistics), strict=True):
        torch.testing.assert_close(x, y)


def test_what_is_kept_while_classes_go_is_what_is_told_of_each_partition():
    """The quick sums for all pairs, and for one class with each other, against the partitions themselves."""
    given = sums(7)
    given = Sums(given.moments, given.together / given.together.sum())
    groups, pairs = [[k] for k in range(7)], _Pairs(given)
    for i, j in ((1, 3), (0, 5), (0, 1), (2, 3)):
        found = pairs.told()
        for a, b in itertools.combinations(range(len(groups)), 2):
            rest = [group for k, group in enumerate(groups) if k not in (a, b)]
            for kept, right in zip(found, told(given.grouped([*rest, groups[a] + groups[b]])), strict=True):
                assert float(kept[a, b]) == pytest.approx(float(right)) and kept[a, b] == pytest.approx(kept[b, a])
        groups[i] += groups.pop(j)
        pairs.merge(i, j)
    for k, kept in enumerate(zip(*_joined(given, 6), strict=True)):
        partition = [[j] for j in range(6) if j != k] + [[k, 6]]
        assert [float(x) for x in kept] == pytest.approx([float(x) for x in told(given.grouped(partition))])


@pytest.mark.parametrize("number", [2, 3, 5])
def test_groups_are_a_partition_that_no_move_improves_whatever_the_order(number):
    given = sums(8)
    found = merged(given, number)
    assert len(found) == number and sorted(itertools.chain(*found)) == list(range(8))
    assert found == sorted(map(sorted, found))
    whole = told(given)
    worth = float(told(given.grouped(found)).worth(whole))
    for k in range(8):
        for target in range(number):
            moved = [[x for x in group if x != k] + [k] * (i == target) for i, group in enumerate(found)]
            if all(moved):
                assert float(told(given.grouped(moved)).worth(whole)) <= worth + 1e-9
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    other = merged(Sums(given.moments[order], given.together[order][:, order]), number)
    assert {frozenset(order[group].tolist()) for group in other} == {frozenset(group) for group in found}


def test_an_only_partition_is_found():
    assert merged(sums(4), 4) == [[0], [1], [2], [3]]


def test_a_poor_partition_is_improved_by_moves():
    """All partitions of 6 classes in 2 groups: the search from the worst of them ends at none that is worse."""
    given = sums(6)
    given = Sums(given.moments, given.together / given.together.sum())
    whole = told(given)

    def worth(groups):
        return float(told(given.grouped(groups)).worth(whole))

    splits = [
        [[0, *rest], [k for k in range(1, 6) if k not in rest]]
        for n in range(5)
        for rest in itertools.combinations(range(1, 6), n)
    ]
    worst = min(splits, key=worth)
    assert worth(_improved(given, worst, whole)) > worth(worst)
    assert worth(merged(given, 2)) == pytest.approx(max(map(worth, splits)))


def planted(label: torch.Tensor, colours, classes: int) -> Sums:
    """Hard classes of an appearance that is the class's colour and some noise."""
    generator = torch.Generator().manual_seed(1)
    y = torch.tensor(colours)[label].movedim(-1, 1)
    y = y + 0.3 * torch.randn(y.shape, generator=generator)
    probs = torch.nn.functional.one_hot(label, classes).movedim(-1, 1).double()
    return sums_of(probs, appearance_statistics(y))


def test_classes_that_divide_a_thing_by_chance_go_together():
    generator = torch.Generator().manual_seed(2)
    thing = torch.randint(3, (8, 16, 16), generator=generator)
    label = 3 * torch.randint(3, (8, 16, 16), generator=generator) + thing
    colours = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 3
    assert merged(planted(label, colours, 9), 3) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_classes_that_follow_the_light_of_the_image_go_together_though_they_look_less_alike():
    """Ground of a dark or a bright image, 0 and 1, differ more than two things that every image has, 2 and 3."""
    label = torch.zeros(8, 16, 16, dtype=torch.int64)
    label[4:] = 1
    label[:, :4] = 2
    label[:, 4:8] = 3
    given = planted(label, [[0.0, 0.0], [1.0, 0.0], [0.4, 3.0], [0.4, 3.6]], 4)
    whole = told(given)
    by_light, by_thing = (told(given.grouped(groups)) for groups in ([[0, 1], [2], [3]], [[0], [1], [2, 3]]))
    assert by_light.appearance < by_thing.appearance
    assert by_light.worth(whole) > by_thing.worth(whole)
    assert merged(given, 3) == [[0, 1], [2], [3]]


def test_a_class_that_is_nowhere_does_no_harm():
    probs, y, _ = example(4)
    probs = torch.cat([probs, torch.zeros_like(probs[:, :1])], dim=1)
    given = sums_of(probs, appearance_statistics(y))
    assert all(torch.isfinite(x) for x in told(given))
    groups = merged(given, 3)
    assert sorted(itertools.chain(*groups)) == list(range(5))
    assert [4] not in groups, "a group of its own would be wasted on it"


@pytest.fixture
def how(tmp_path) -> dict:
    data = str(write_folder(tmp_path / "data", number=10, side=40))
    return SMALL | {"data": data, "classes": 3, "steps": 8}


def state_of(run) -> dict:
    return checkpoint.load(run)


def same(a, b) -> bool:
    """Whether two states hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(x, b[key]) for key, x in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def prefer(monkeypatch, finer: bool) -> None:
    """Labels of the finer network, or never of it, whatever its classes tell."""
    monkeypatch.setattr("infoseg_fast.recipe.merging.Told.worth", Worth(finer))


class Worth:
    """In place of `Told.worth`: that of nine classes grouped to three above or below that of three."""

    def __init__(self, finer: bool) -> None:
        self.finer, self.calls = finer, 0

    def __get__(self, told, _):
        return lambda *given: told.appearance if told.appearance.dim() else torch.tensor(self.verdict())

    def verdict(self) -> float:
        self.calls += 1
        return -float(self.calls) if self.finer else float(self.calls)


def test_labels_are_of_the_finer_network_where_its_classes_tell_more(how, tmp_path, monkeypatch, capsys):
    images = torch.rand(2, 3, 40, 40)
    with monkeypatch.context() as patch:
        prefer(patch, True)
        train(how, tmp_path / "finer")
    assert "labels are of a network of 9 classes, taken together" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        prefer(patch, False)
        train(how, tmp_path / "own")
    assert "as many classes as are wanted, not of 9" in capsys.readouterr().out
    finer, own = state_of(tmp_path / "finer"), state_of(tmp_path / "own")
    assert same(finer["learners"], own["learners"]), "which labels are made does not touch the training"
    groups = finer["prediction"]["groups"]
    assert sorted(itertools.chain(*groups)) == list(range(9)) and len(groups) == 3
    assert own["prediction"]["groups"] is None
    for state, classes, learner in ((finer, 9, 1), (own, 3, 0)):
        assert state["network"]["num_classes"] == classes
        assert same(state["model"], state["learners"][learner]["average"])
        assert state["prediction"]["refinement"]["residual"].shape[0] == 3
    segmenter = isf.load(tmp_path / "finer")
    assert segmenter.num_clusters == 3 and segmenter.model.num_classes == 9
    assert segmenter.segment(images).max() < 3
    whole = isf.Segmenter(segmenter.model)
    together = torch.stack([whole.assign(images)[:, group].sum(dim=1) for group in groups], dim=1)
    torch.testing.assert_close(isf.Segmenter(segmenter.model, groups=groups).assign(images), together)


def test_the_choice_is_that_of_what_the_classes_tell(how, tmp_path):
    """Of the state of a run: the groups and the verdict are those of its first crops."""
    from infoseg_fast.config import TrainConfig
    from infoseg_fast.data import open_set
    from infoseg_fast.train import Run

    config = TrainConfig(**(how | {"smooth": 0}))
    config.complete()
    run = Run(config, open_set(config.data, "train", num_classes=3), torch.device("cpu"), None)
    seen = []
    for learner in run.learners():
        parts = list(run._assigned(learner, None))
        images, probs = (torch.cat(x) for x in list(zip(*parts, strict=True))[:2])
        statistics = appearance_statistics(isf.local_appearance(images, probs.shape[2:]))
        seen.append(sums_of(probs, statistics))
    own, finer = seen
    groups, whole = merged(finer, 3), told(finer)
    better = told(finer.grouped(groups)).worth(whole) > told(own).worth(whole) + CLEARLY
    chosen = run.choice()
    assert chosen.learner is (run.finer if better else run.learner)
    assert chosen.groups == (groups if better else None)


def test_batches_with_and_without_padding_are_seen_as_one(how):
    """Of some batches every position counts (no mask), of others not: the statistics are those of all of them."""
    from infoseg_fast.config import TrainConfig
    from infoseg_fast.data import open_set
    from infoseg_fast.data.crops import Batch
    from infoseg_fast.train import Run, valid_positions

    config = TrainConfig(**(how | {"smooth": 0}))
    config.complete()
    run = Run(config, open_set(config.data, "train", num_classes=3), torch.device("cpu"), None)
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    valid = torch.ones(3, 32, 32, dtype=torch.bool)
    valid[:, 20:] = False
    found = torch.cat(run.statistics_of([Batch(images[:3], None), Batch(images[3:], valid)]))
    mask = torch.cat([torch.ones(3, 8, 8, dtype=torch.bool), valid_positions(valid, (8, 8))])
    expected = appearance_statistics(isf.local_appearance(images / 255, (8, 8)), mask)
    torch.testing.assert_close(found, expected)


def test_the_learner_trains_as_it_does_alone(how, tmp_path):
    train(how | {"overcluster": 1.0}, tmp_path / "alone")
    train(how, tmp_path / "both")
    alone, both = state_of(tmp_path / "alone"), state_of(tmp_path / "both")
    assert len(alone["learners"]) == 1 and same(alone["learners"][0], both["learners"][0])
    train(how | {"classes": 9, "overcluster": 1.0}, tmp_path / "many")
    assert same(state_of(tmp_path / "many")["learners"][0], both["learners"][1])


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_run_in_two_parts_has_the_same_bits(how, tmp_path, steps):
    train(how, tmp_path / "whole")
    train(how | {"steps": steps}, tmp_path / "parts")
    train({"steps": 8}, tmp_path / "parts", resume=True)
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    for key in ("learners", "model", "network", "prediction", "step"):
        assert same(whole[key], parts[key]), key


def test_a_run_of_before_there_were_finer_networks_goes_on_without(how, tmp_path):
    train(how | {"steps": 4, "overcluster": 2.0}, tmp_path / "run")
    state = state_of(tmp_path / "run")
    own = state.pop("learners")[0]
    state |= {"model": own["average"], "trained": own["trained"], "optimizer": own["optimizer"]}
    state["network"]["num_classes"] = 3
    del state["prediction"]["groups"]
    checkpoint.save(tmp_path / "run", state, is_best=False)
    assert isf.load(tmp_path / "run").num_clusters == 3
    train({"steps": 8}, tmp_path / "run", resume=True)
    train(how | {"overcluster": 1.0}, tmp_path / "alone")
    assert same(state_of(tmp_path / "run")["learners"], state_of(tmp_path / "alone")["learners"])


@pytest.mark.parametrize("settings", [{"recipe": "paper"}, {"appearance": 0.0}, {"overcluster": 1.1}])
def test_without_appearance_or_more_classes_there_is_one_network(how, tmp_path, settings):
    train(how | {"steps": 2} | settings, tmp_path / "run")
    assert len(state_of(tmp_path / "run")["learners"]) == 1


def test_a_finer_network_that_is_not_finite_is_not_used(how, tmp_path, monkeypatch):
    spoilt = []

    def sums(run, learner):
        found = right(run, learner)
        if learner is run.finer:
            spoilt.append(found.moments.fill_(torch.nan))
        return found

    from infoseg_fast.train import Run

    right = Run.sums
    monkeypatch.setattr(Run, "sums", sums)
    train(how | {"steps": 2}, tmp_path / "run")
    assert spoilt and state_of(tmp_path / "run")["prediction"]["groups"] is None


def test_fewer_classes_than_wanted_are_refused(how, tmp_path):
    with pytest.raises(DataError, match=r"--overcluster must be at least 1, not 0\.5"):
        train(how | {"overcluster": 0.5}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2]], [[0], [1, 3]], [[0, 1, 2], [3]]])
def test_groups_that_are_no_partition_are_refused(groups):
    with pytest.raises(ValueError, match="groups must have each of the 3 classes once"):
        isf.Segmenter(isf.InfoSegNet(3, num_classes=3, width=4, dim=8), groups=groups)


def test_images_in_tiles_have_the_clusters_of_the_whole(monkeypatch):
    torch.manual_seed(0)
    model = isf.InfoSegNet(3, num_classes=6, width=4, dim=8, depth=0).eval()
    segmenter = isf.Segmenter(model, groups=[[0, 5], [1], [2, 3, 4]])
    images = torch.rand(1, 3, 96, 160)
    expected = segmenter.segment(images)
    monkeypatch.setattr("infoseg_fast.segmenter.MAX_PIXELS", 64)
    monkeypatch.setattr("infoseg_fast.segmenter.TILE", 48)
    assert (segmenter.segment(images) == expected).float().mean() > 0.999
    target = torch.randint(4, (1, 96, 160), dtype=torch.uint8)
    counts = segmenter.count(images, target, 4)
    assert counts.shape == (3, 4) and counts.sum() == target.numel()
