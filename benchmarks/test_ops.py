"""pytest-benchmark cases of every op: the op beside its competitors, with error and extra memory."""

import pytest
import torch

from infoseg_fast.bench import cpu, providers

CASES = providers.chosen_cases("cpu", ())


@pytest.mark.parametrize("provider", ["infoseg_fast", "eager", "compiled", "as written"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_op(benchmark, case, provider):
    torch.set_num_threads(1)
    tensors, keywords = providers.arguments(case, cpu.CPU)
    found = providers.providers(case, keywords, compiled=provider == "compiled")
    if provider not in found:
        pytest.skip("this case has no such provider")
    exact, exact_keywords = providers.arguments(case, cpu.CPU, torch.float64)
    mode, step = list(providers.steps(case, found[provider], tensors).items())[-1]
    truth = providers.steps(case, providers.providers(case, exact_keywords)["eager"], exact)[mode]()
    benchmark.group = f"{case.op}, {case.name}"
    benchmark.extra_info["error"] = max(providers.relative_errors(step(), truth))
    benchmark.extra_info["extra_mb"] = cpu.extra_memory(step)
    benchmark(step)
    floor = cpu.floor_ms(case, mode, cpu.machine_rates())
    benchmark.extra_info["share_of_floor"] = floor / (1e3 * benchmark.stats.stats.median)
