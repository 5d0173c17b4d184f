"""pytest-benchmark cases of the matcher and the scorer at many sizes; see also `scoring_ratios.py`."""

import numpy as np
import pytest
import scipy.optimize
import torch

import infoseg_fast as isf
from infoseg_fast.bench import baselines

SOLVERS = {"infoseg_fast": isf.linear_sum_assignment, "scipy": scipy.optimize.linear_sum_assignment}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("provider", SOLVERS)
@pytest.mark.parametrize("size", [10, 27, 64, 256, 1000])
def test_one_assignment(benchmark, size, provider):
    benchmark.group = f"linear_sum_assignment {size}x{size}"
    benchmark(SOLVERS[provider], np.random.default_rng(0).random((size, size)))


@pytest.mark.parametrize("provider", SOLVERS)
def test_a_batch_of_assignments(benchmark, provider):
    benchmark.group = "linear_sum_assignment 4000x27x27"
    costs = np.random.default_rng(0).random((4000, 27, 27))
    solve = (
        SOLVERS[provider] if provider == "infoseg_fast" else lambda batch: [SOLVERS[provider](cost) for cost in batch]
    )
    benchmark(solve, costs)


@pytest.mark.parametrize("provider", ["infoseg_fast", "numpy"])
@pytest.mark.parametrize("labels", ["noise", "squares"])
def test_confusion_counts(benchmark, labels, provider):
    benchmark.group = f"confusion_matrix 4 million uint8, {labels}"
    rng, block = np.random.default_rng(0), 16 if labels == "squares" else 1
    coarse = rng.integers(0, 27, (2, 2000 // block, 2000 // block)).astype(np.uint8)
    pred, target = coarse.repeat(block, 1).repeat(block, 2)
    target[rng.integers(0, 10, coarse[0].shape).repeat(block, 0).repeat(block, 1) == 0] = 255
    count = baselines.confusion_matrix if provider == "numpy" else isf.confusion_matrix
    counts = benchmark(count, torch.from_numpy(pred), torch.from_numpy(target), 27, 27)
    assert counts.sum() == (target != 255).sum()
