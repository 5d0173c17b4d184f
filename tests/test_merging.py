"""Merging of over-clusters: the criteria of a partition, and the partition that is found."""

import itertools

import pytest
import torch

from infoseg_fast.ops.appearance_statistics import appearance_statistics
from infoseg_fast.recipe.appearance import appearance_information
from infoseg_fast.recipe.merging import (
    Criteria,
    Statistics,
    _improved,
    _PairMerges,
    criteria,
    merge,
    merges,
    statistics_of,
)
from infoseg_fast.recipe.resampling import BLOCK_IMAGES, MAX_RESAMPLED_CLASSES, block_statistics, resampled_merge, total


def example(classes: int, images: int = 6, masked: bool = False):
    """Probabilities, appearance and mask that have something to do with each other, float64."""
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(images, classes, 5, 7, generator=generator, dtype=torch.float64)
    logits += torch.randn(images, classes, 1, 1, generator=generator, dtype=torch.float64)
    y = logits[:, :3] + torch.randn(images, 3, 5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(images, 5, 7, generator=generator) > 0.3 if masked else None
    return logits.softmax(dim=1), y, mask


def statistics(classes: int) -> Statistics:
    probs, y, _ = example(classes)
    return of(probs, y)


def of(probs, y, mask=None) -> Statistics:
    return statistics_of([(probs, appearance_statistics(y, mask), mask)])


def together(sums: list[Statistics]) -> Statistics:
    """Sums of the same classes with a further dimension."""
    return Statistics(*(torch.stack(x) for x in zip(*sums, strict=True)))


@pytest.mark.parametrize("masked", [False, True])
def test_criteria_are_the_two_informations(masked):
    probs, y, mask = example(4, masked=masked)
    found = criteria(of(probs, y, mask))
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


def test_statistics_add_up_over_batches_and_an_image_without_a_counted_position_adds_nothing():
    probs, y, mask = example(4, masked=True)
    mask[2] = False
    products = appearance_statistics(y, mask)
    whole = statistics_of([(probs, products, mask)])
    parts = statistics_of((probs[part], products[part], mask[part]) for part in (slice(0, 2), slice(2, 6)))
    for x, y in zip(whole, parts, strict=True):
        torch.testing.assert_close(x, y)
    assert float(whole.joint.sum()) == pytest.approx(5)


def test_merging_classes_adds_their_probabilities():
    probs, y, _ = example(5)
    groups = [[1, 4], [0], [2, 3]]
    together = torch.stack([probs[:, group].sum(dim=1) for group in groups], dim=1)
    for x, z in zip(of(probs, y).merged(groups), of(together, y), strict=True):
        torch.testing.assert_close(x, z)


def test_criteria_of_all_pairs_are_those_of_each_partition():
    """The quick sums for all pairs against the partitions themselves."""
    given = statistics(7)
    given = Statistics(given.moments, given.joint / given.joint.sum())
    pairs = _PairMerges.of(together([given, given]))
    partitions = [[[k] for k in range(7)] for _ in range(2)]
    for places in (((1, 3), (0, 6)), ((0, 5), (2, 4)), ((0, 1), (0, 4)), ((2, 3), (1, 2))):
        found = pairs.criteria()
        for one, groups in enumerate(partitions):
            for a, b in itertools.combinations(range(len(groups)), 2):
                rest = [group for k, group in enumerate(groups) if k not in (a, b)]
                for kept, right in zip(found, criteria(given.merged([*rest, groups[a] + groups[b]])), strict=True):
                    assert float(kept[one, a, b]) == pytest.approx(float(right))
                    assert kept[one, a, b] == pytest.approx(kept[one, b, a])
        for groups, (i, j) in zip(partitions, places, strict=True):
            groups[i] += groups.pop(j)
        pairs = pairs.merged(*torch.tensor(places).T)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_groups_are_a_partition_that_no_move_improves_whatever_the_order(number):
    given = statistics(8)
    found = merge(given, number)
    assert len(found) == number and sorted(itertools.chain(*found)) == list(range(8))
    assert found == sorted(map(sorted, found))
    whole = criteria(given)
    score = float(criteria(given.merged(found)).score(whole))
    for k in range(8):
        for target in range(number):
            moved = [[x for x in group if x != k] + [k] * (i == target) for i, group in enumerate(found)]
            if all(moved):
                assert float(criteria(given.merged(moved)).score(whole)) <= score + 1e-9
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    other = merge(Statistics(given.moments[order], given.joint[order][:, order]), number)
    assert {frozenset(order[group].tolist()) for group in other} == {frozenset(group) for group in found}


def test_an_only_partition_is_found():
    assert merge(statistics(4), 4) == [[0], [1], [2], [3]]


def test_a_poor_partition_is_improved_by_moves():
    """All partitions of 6 classes in 2 groups: the search from the worst of them ends at none that
    is worse.
    """
    given = statistics(6)
    given = Statistics(given.moments, given.joint / given.joint.sum())
    whole = criteria(given)

    def score(groups):
        return float(criteria(given.merged(groups)).score(whole))

    splits = [
        [[0, *rest], [k for k in range(1, 6) if k not in rest]]
        for n in range(5)
        for rest in itertools.combinations(range(1, 6), n)
    ]
    worst = min(splits, key=score)
    (improved,) = _improved(together([given]), [worst], Criteria(*(x[None] for x in whole)))
    assert score(improved) > score(worst)
    assert score(merge(given, 2)) == pytest.approx(max(map(score, splits)))


def planted(label: torch.Tensor, colours, classes: int) -> Statistics:
    """Hard classes of an appearance that is the class's colour and some noise."""
    generator = torch.Generator().manual_seed(1)
    y = torch.tensor(colours)[label].movedim(-1, 1)
    y = y + 0.3 * torch.randn(y.shape, generator=generator)
    probs = torch.nn.functional.one_hot(label, classes).movedim(-1, 1).double()
    return of(probs, y)


def test_classes_that_divide_a_thing_by_chance_go_together():
    generator = torch.Generator().manual_seed(2)
    thing = torch.randint(3, (8, 16, 16), generator=generator)
    label = 3 * torch.randint(3, (8, 16, 16), generator=generator) + thing
    colours = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 3
    assert merge(planted(label, colours, 9), 3) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_classes_that_follow_the_light_of_the_image_go_together_though_they_look_less_alike():
    """Ground of a dark or a bright image, 0 and 1, differ more than two things that every image
    has, 2 and 3.
    """
    label = torch.zeros(8, 16, 16, dtype=torch.int64)
    label[4:] = 1
    label[:, :4] = 2
    label[:, 4:8] = 3
    given = planted(label, [[0.0, 0.0], [1.0, 0.0], [0.4, 3.0], [0.4, 3.6]], 4)
    whole = criteria(given)
    by_light, by_thing = (criteria(given.merged(groups)) for groups in ([[0, 1], [2], [3]], [[0], [1], [2, 3]]))
    assert by_light.appearance < by_thing.appearance
    assert by_light.score(whole) > by_thing.score(whole)
    assert merge(given, 3) == [[0, 1], [2], [3]]


def test_a_class_that_is_nowhere_does_no_harm():
    probs, y, _ = example(4)
    probs = torch.cat([probs, torch.zeros_like(probs[:, :1])], dim=1)
    given = of(probs, y)
    assert all(torch.isfinite(x) for x in criteria(given))
    groups = merge(given, 3)
    assert sorted(itertools.chain(*groups)) == list(range(5))
    assert [4] not in groups, "a group of its own would be wasted on it"


def test_blocks_add_up_to_the_statistics():
    probs, y, mask = example(4, images=2 * BLOCK_IMAGES + 3, masked=True)
    batch = probs, appearance_statistics(y, mask), mask
    blocks = block_statistics([batch])
    assert blocks.moments.shape[:2] == (3, 4) and blocks.joint.shape == (3, 4, 4)
    for x, z in zip(total(blocks), statistics_of([batch]), strict=True):
        torch.testing.assert_close(x, z)


def test_a_resampled_merge_agrees_best_with_the_merges_of_other_resamples(monkeypatch):
    """The groups that most resamples have, whatever the sums over all images would give."""
    blocks = Statistics(torch.rand(5, 6, 3).double(), torch.rand(5, 6, 6).double())
    usual, other = [[0, 1], [2, 3, 4, 5]], [[0, 5], [1, 2, 3, 4]]
    given = iter([other, usual, other, usual, usual] * 4)
    seen = []

    def merges(resamples, numbers, weights):
        seen.extend(resamples.moments)
        return [[next(given) for _ in resamples.moments] for _ in numbers]

    monkeypatch.setattr("infoseg_fast.recipe.resampling.merges", merges)
    assert resampled_merge(blocks, 2) == usual
    assert len({tuple(x.flatten().tolist()) for x in seen}) > 8  # resamples differ
    first = [x.clone() for x in seen]
    seen.clear()
    given = iter([usual] * 16)
    resampled_merge(blocks, 2)
    assert all(torch.equal(x, z) for x, z in zip(first, seen, strict=True))


def test_several_sums_and_numbers_give_the_groups_of_each():
    """Sums over other images, and of classes that are nowhere or alike."""
    probs, y, _ = example(9, images=24)
    probs[12:18, 8] = 0
    probs[18:, 7] = probs[18:, 6]
    sums = [of(probs[part], y[part]) for part in map(slice, range(0, 24, 6), range(6, 25, 6))]
    numbers = [5, 2, 9, 3]
    found = merges(together(sums), numbers)
    assert found == [[merge(one, number) for one in sums] for number in numbers]
    assert len({str(groups) for groups in found[0]}) > 1


def test_resamples_of_equal_blocks_and_many_classes_give_the_plain_merge():
    one = statistics(8)
    equal = Statistics(*(torch.stack([x] * 3) for x in one))
    assert resampled_merge(equal, 3) == merge(one, 3)
    assert resampled_merge(Statistics(*(x[None] for x in one)), 3) == merge(one, 3)
    n = MAX_RESAMPLED_CLASSES + 1
    many = Statistics(*(torch.stack([x, 2 * x]) for x in statistics(n)))
    assert resampled_merge(many, n - 1) == merge(total(many), n - 1)
    assert resampled_merge(many, n) == [[k] for k in range(n)]
