"""Matching and scores."""

import itertools
import math

import numpy as np
import pytest
import torch

import infoseg_fast as isf


def best_by_enumeration(counts):
    clusters, classes = counts.shape
    small, large = min(clusters, classes), max(clusters, classes)
    square = counts if clusters <= classes else counts.T
    return max(sum(square[i, p[i]] for i in range(small)) for p in itertools.permutations(range(large), small))


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (2, 4), (1, 1)])
def test_the_matching_is_the_best_of_all(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(0, 50, shape)
        match = isf.match_clusters(counts)
        assert match.matched == best_by_enumeration(counts)
        assigned = match.mapping[match.mapping >= 0]
        assert len(set(assigned.tolist())) == len(assigned) == min(shape)


def test_many_to_one_gives_each_cluster_its_commonest_class():
    counts = np.array([[5, 1], [9, 2], [0, 3]])
    match = isf.match_clusters(counts, "many_to_one")
    assert match.mapping.tolist() == [0, 0, 1] and match.accuracy == 17 / 20
    with pytest.raises(ValueError, match="method"):
        isf.match_clusters(counts, "greedy")


def test_a_perfect_clustering_scores_1_whatever_its_names():
    target = torch.randint(0, 4, (3, 20, 20), dtype=torch.uint8)
    metrics = isf.ClusterMetrics(4, 4)
    metrics.update(torch.tensor([2, 0, 3, 1], dtype=torch.uint8)[target.long()], target)
    scores = metrics.compute()
    assert scores["pixel_accuracy"] == scores["mean_iou"] == 1
    assert abs(scores["nmi"] - 1) < 1e-12 and scores["mapping"] == [1, 3, 0, 2]


def test_scores_of_a_worked_example():
    metrics = isf.ClusterMetrics(3, 2)
    metrics.add(torch.tensor([[30, 10], [5, 40], [10, 5]]))
    scores = metrics.compute()
    assert scores["pixel_accuracy"] == 70 / 100 and scores["mapping"] == [0, 1, -1]
    assert scores["iou"] == [30 / (45 + 10), 40 / (55 + 5)]
    assert scores["majority_accuracy"] == 0.55 and scores["class_shares"] == [0.45, 0.55]
    joint = np.array([[30, 10], [5, 40], [10, 5]]) / 100
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    information = (joint * np.log(joint / outer)).sum()
    entropies = [-(p * np.log(p)).sum() for p in (joint.sum(1), joint.sum(0))]
    assert abs(scores["nmi"] - information / np.mean(entropies)) < 1e-12


def test_an_absent_class_leaves_the_mean_iou():
    metrics = isf.ClusterMetrics(3, 3)
    metrics.add(torch.tensor([[10, 0, 0], [0, 10, 0], [0, 0, 0]]))
    scores = metrics.compute()
    assert scores["mean_iou"] == 1 and math.isnan(scores["iou"][2])


def test_a_metric_made_in_inference_mode_works_outside_it_and_the_other_way_round():
    pred, target = torch.randint(0, 5, (2, 9, 9)).byte(), torch.randint(0, 3, (2, 9, 9)).byte()
    for bootstrap in (0, 7):
        plain = isf.ClusterMetrics(5, 3, bootstrap=bootstrap)
        for _ in range(3):
            plain.update(pred, target)
        with torch.inference_mode():
            metrics = isf.ClusterMetrics(5, 3, bootstrap=bootstrap)
            metrics.update(pred, target)
        metrics.update(pred, target)
        with torch.inference_mode():
            metrics.add(torch.zeros(5, 3, dtype=torch.int64), outside=torch.tensor([0]))
            metrics.update(pred, target)
        assert metrics.compute()["confusion"] == plain.compute()["confusion"]
        with torch.inference_mode():
            metrics.reset()
        metrics.update(pred, target)
        assert metrics.counts.sum() == pred.numel()
