"""`ClusterMetrics` over streams: exact counts, several processes, the bootstrap interval."""

import math

import numpy as np
import pytest
import torch
from processes import each_rank

import infoseg_fast as isf
from infoseg_fast.reference.confusion_matrix import counts_and_outside
from infoseg_fast.scores import metrics as metrics_module
from infoseg_fast.scores.bootstrap import PoissonBootstrap, accuracies_of


def images(number):
    """Label maps of 4 clusters and 3 classes, with different accuracies."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, (number, 8, 9))
    noise = rng.random((number, 1, 1)) * rng.random((number, 8, 9)) > 0.3
    pred = np.where(noise, rng.integers(0, 4, target.shape), (target + 1) % 4)
    target[rng.random(target.shape) < 0.1] = 255
    return torch.from_numpy(pred.astype(np.uint8)), torch.from_numpy(target.astype(np.uint8))


def test_a_million_million_pixels_are_counted_exactly():
    metrics = isf.ClusterMetrics(3, 3)
    whole = torch.tensor([[10**12 + 1, 3, 0], [7, 10**12 - 5, 1], [0, 2, 2**52 + 1]])
    for part in whole.split(1):
        metrics.add(torch.zeros(3, 3, dtype=torch.int64).index_add_(0, torch.tensor([0]), part))
    metrics.reset()
    metrics.add(whole)
    metrics.add(np.eye(3, dtype=np.int64))
    scores = metrics.compute()
    assert scores["num_pixels"] == int(whole.sum()) + 3
    assert scores["confusion"][2][2] == 2**52 + 2 and scores["mapping"] == [0, 1, 2]


def test_one_image_or_many_and_any_integer_dtype_are_the_same():
    pred, target = images(6)
    expected = isf.ClusterMetrics(4, 3)
    expected.update(pred, target)
    for make in (lambda x: x.long(), lambda x: x.numpy().astype(np.int16), lambda x: x.to(torch.int32).mT):
        other = isf.ClusterMetrics(4, 3)
        for p, t in zip(pred, target, strict=True):
            other.update(make(p), make(t))
        assert other.compute() == expected.compute()


def test_an_update_with_a_value_out_of_range_counts_nothing():
    pred, target = images(2)
    for bootstrap in (0, 5):
        metrics = isf.ClusterMetrics(4, 3, bootstrap=bootstrap)
        metrics.update(pred, target)
        before = metrics.compute()
        bad = pred.clone()
        bad[1, 2, 3], bad_target = 4, target.clone()
        bad_target[1, 2, 3] = 0
        index = "image 1: pred holds 4 at flat index" if bootstrap else "^pred holds 4 at flat index"
        with pytest.raises(ValueError, match=index):
            metrics.update(bad, bad_target)
        assert metrics.compute() == before


def test_on_a_device_values_out_of_range_raise_at_compute(monkeypatch):
    # Count on the CPU as on a device.
    def add_aside(counts, pred, target, ignore_index):
        added, outside = counts_and_outside(pred, target, *counts.shape, ignore_index)
        counts += added
        return outside

    monkeypatch.setattr(metrics_module, "add_confusion", add_aside)
    pred, target = images(3)
    for bootstrap in (0, 5):
        metrics = isf.ClusterMetrics(4, 3, bootstrap=bootstrap)
        metrics.update(pred, target)
        metrics.compute()
        metrics.update(pred + 4, target)
        with pytest.raises(
            ValueError, match=rf"{int((target != 255).sum())} positions had a prediction outside 0 to 3"
        ):
            metrics.compute()
        metrics.reset()
        assert metrics.compute()["num_pixels"] == 0


@pytest.mark.parametrize("method", ["hungarian", "many_to_one"])
def test_replicates_count_every_image_a_poisson_number_of_times(method):
    pred, target = images(40)
    counts = torch.stack([isf.confusion_matrix(p, t, 4, 3) for p, t in zip(pred, target, strict=True)])
    bootstrap = PoissonBootstrap(50, 4, 3, seed=3)
    bootstrap.add(counts)
    weights = torch.from_numpy(np.random.default_rng([3, 0]).poisson(1.0, (40, 50)))
    expected = torch.stack([(w[:, None, None] * counts).sum(0) for w in weights.T])
    assert torch.equal(bootstrap.counts, expected)
    for accuracy, replicate in zip(accuracies_of(bootstrap.counts, method), expected, strict=True):
        assert accuracy == isf.match_clusters(replicate, method).accuracy


def test_replicates_do_not_depend_on_how_images_were_grouped():
    pred, target = images(12)
    scores = []
    for size in (1, 5, 12):
        metrics = isf.ClusterMetrics(4, 3, bootstrap=30, seed=1)
        for p, t in zip(pred.split(size), target.split(size), strict=True):
            metrics.update(p, t)
        scores.append(metrics.compute())
    assert scores[0] == scores[1] == scores[2]


def test_replicates_are_exact_beyond_float64():
    bootstrap = PoissonBootstrap(20, 2, 2)
    counts = torch.tensor([[[2**55 + 1, 1], [0, 2**54 + 1]]])
    bootstrap.add(counts)
    weights = np.random.default_rng([0, 0]).poisson(1.0, (1, 20))[0]
    assert bootstrap.counts[:, 0, 0].tolist() == [int(w) * (2**55 + 1) for w in weights]


def test_the_interval_is_about_the_spread_of_the_accuracy():
    # Images have accuracy 1 or 0 at even odds.
    n = 400
    right = np.random.default_rng(0).random(n) < 0.5
    # The second class fixes the matching.
    counts = np.zeros((n, 2, 2), np.int64)
    counts[right, 0, 0] = counts[~right, 0, 1] = 100
    counts[:, 1, 1] = 100
    metrics = isf.ClusterMetrics(2, 2, bootstrap=1000)
    metrics.add(counts)
    scores = metrics.compute()
    low, high = scores["accuracy_interval"]
    assert low < scores["pixel_accuracy"] < high
    # Half of all pixels vary, so the accuracy's standard deviation is 0.25 / sqrt(n); 95 % lie
    # within 1.96 of them.
    assert abs((high - low) / (2 * 1.96 * 0.25 / math.sqrt(n)) - 1) < 0.15


def test_without_images_the_interval_is_unknown():
    metrics = isf.ClusterMetrics(3, 2, bootstrap=10)
    assert all(math.isnan(x) for x in metrics.compute()["accuracy_interval"])
    assert "accuracy_interval" not in isf.ClusterMetrics(3, 2).compute()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_clusters": 0},
        {"num_classes": 2.0},
        {"num_classes": True},
        {"method": "x"},
        {"bootstrap": -1},
        {"seed": "a"},
    ],
)
def test_wrong_arguments_are_named_where_the_metric_is_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        isf.ClusterMetrics(**{"num_clusters": 2, "num_classes": 2} | wrong)


def test_counts_of_another_shape_are_refused():
    metrics = isf.ClusterMetrics(3, 2)
    for shape in ((2, 3), (6,), (1, 1, 3, 2)):
        with pytest.raises(ValueError, match="counts must be"):
            metrics.add(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_counts_that_are_no_whole_numbers_are_refused(dtype):
    metrics = isf.ClusterMetrics(3, 2)
    for counts in (torch.ones(3, 2, dtype=dtype), torch.ones(3, 2, dtype=dtype).numpy()):
        with pytest.raises(ValueError, match="counts must be whole numbers"):
            metrics.add(counts)


def test_negative_counts_are_refused():
    counts = torch.tensor([[3, -1], [0, 2]])
    with pytest.raises(ValueError, match="counts must be at least 0, not -1"):
        isf.ClusterMetrics(2, 2).add(counts)
    with pytest.raises(ValueError, match="counts must be at least 0, not -1"):
        isf.match_clusters(counts)


@pytest.mark.parametrize("bootstrap", [0, 5])
def test_label_maps_of_different_numbers_of_images_are_refused(bootstrap):
    pred, target = images(3)
    metrics = isf.ClusterMetrics(4, 3, bootstrap=bootstrap)
    with pytest.raises(ValueError, match=r"one shape, not \[2, 8, 9\] and \[3, 8, 9\]"):
        metrics.update(pred[:2], target)
    assert metrics.counts.sum() == 0


def _synced(rank, world, file):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=world)
    try:
        pred, target = images(10)
        metrics = isf.ClusterMetrics(4, 3, bootstrap=40)
        metrics.update(pred[rank:6:world], target[rank:6:world])
        metrics.sync()
        metrics.sync()  # nothing is counted twice
        metrics.update(pred[6 + rank :: world], target[6 + rank :: world])
        metrics.sync()
        return metrics.compute()
    finally:
        torch.distributed.destroy_process_group()


def test_processes_that_sync_repeatedly_have_what_one_would(tmp_path):
    first, second = each_rank(_synced, 2, tmp_path / "store")
    assert first == second
    low, high = first.pop("accuracy_interval")
    alone = isf.ClusterMetrics(4, 3)
    alone.update(*images(10))
    assert first == alone.compute() and low <= first["pixel_accuracy"] <= high
