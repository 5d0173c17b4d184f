"""pytest-benchmark cases: each op beside the best PyTorch of the same algebra, with error and extra memory."""

import pytest
import torch

from infoseg_fast.bench import cpu as bench

CASES = {case.name: case for case in bench.CASES}


@pytest.mark.parametrize("provider", ["infoseg_fast", "eager", "compiled", "as written"])
@pytest.mark.parametrize("name", CASES)
def test_op(benchmark, name, provider):
    case = CASES[name]
    found = bench.providers(case, compiled=provider == "compiled")
    if provider not in found:
        pytest.skip("only for the first row")
    torch.set_num_threads(1)
    x, mask = bench.inputs(case)
    exact, _ = bench.inputs(case, torch.float64)
    truth = bench.step_of(case, found["eager"], exact, mask)()
    step = bench.step_of(case, found[provider], x, mask)
    benchmark.group = name
    benchmark.extra_info["error"] = max(bench.relative_errors(step(), truth))
    benchmark.extra_info["extra_mb"] = bench.extra_memory(step)
    benchmark(step)
    rates = bench.machine_rates()
    floor = max(case.operations() / rates[0], case.moved_bytes() / rates[1])
    benchmark.extra_info["share_of_floor"] = floor / (1e3 * benchmark.stats.stats.median)
