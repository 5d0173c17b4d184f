"""`infoseg bench`: its rows, and that the baselines it compares with compute the same thing."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infoseg_fast.bench import cpu as bench
from infoseg_fast.bench import cuda as bench_cuda
from infoseg_fast.bench import cuda_checks
from infoseg_fast.cli import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_the_baseline_computes_what_the_op_computes(case):
    small = bench.Case(case.op, case.name, B=4, C=8, D=6, K=3, side=6, settings=case.settings, masked=case.masked)
    x, mask = bench.inputs(small, torch.float64)
    results = [bench.step_of(small, f, x, mask)() for f in bench.providers(small, compiled=False).values()]
    for other in results[1:]:
        if case.op in ("segment", "refine"):
            assert torch.equal(results[0][0], other[0])
        else:
            torch.testing.assert_close(results[0][0], other[0])


def test_bench_gives_the_error_of_the_loss_and_of_each_gradient():
    case = bench.Case("loss", "jsd", B=4, C=8, D=6, K=3, side=6)
    row = bench.measure(case, 3, False, (1e6, 1e6))[0]
    errors = [float(row[f"error_{name}"]) for name in bench.RESULTS]
    assert float(row["error"]) == max(errors) < 1e-5
    assert set(row) == set(bench.COLUMNS)


def test_bench_writes_a_row_for_each_provider(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    assert main(["bench", "assign", "--repeats", "3", "--no-compile", "--csv", str(file)]) == 0
    rows = list(csv.DictReader(file.open()))
    assert [row["provider"] for row in rows] == ["infoseg_fast", "eager"]
    assert float(rows[0]["error"]) < 1e-5 and float(rows[0]["median_ms"]) > 0
    assert "assign" in capsys.readouterr().out


def test_bench_names_an_unknown_op(capsys):
    assert main(["bench", "sorting"]) == 2
    assert "sorting" in capsys.readouterr().err


@pytest.mark.parametrize("case", bench_cuda.CASES, ids=lambda case: case.name)
def test_the_baselines_of_the_gpu_compute_what_the_ops_compute(case):
    shape = {"B": 4, "C": 8, "D": 6, "K": 3, "h": 6, "w": 5}
    settings = case.settings | ({"size": (9, 11)} if "size" in case.settings else {})
    small = bench_cuda.Case(case.op, case.name, shape, torch.float64, settings)
    x = [t.requires_grad_(case.differentiable) for t in bench_cuda.inputs(small, torch.float64, torch.device("cpu"))]
    found = bench_cuda.providers(small, torch.device("cpu"), backend="reference")
    results = [bench_cuda.steps(f, x, case.differentiable) for f in found.values()]
    for mode, step in results[0].items():
        for other in results[1:]:
            for a, b in zip(step(), other[mode](), strict=True):
                torch.testing.assert_close(a, b)


def test_without_a_gpu_the_gpu_bench_ends_with_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "infoseg bench: --device: no CUDA device can be used here; take cpu\n"


def test_the_gpu_bench_times_checked_kernels_and_stops_compiling_when_time_is_over(monkeypatch, tmp_path, capsys):
    """On the CPU with the device's own calls replaced: the course of the command, not its figures."""
    cpu, asked = torch.device("cpu"), []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(bench_cuda, "copy_rate", lambda device: 1e6)
    monkeypatch.setattr(bench_cuda, "timed", lambda step, repeats, device: [float(len(step()))] * repeats)
    monkeypatch.setattr(bench_cuda, "extra_memory", lambda step, device: 1.0)
    shape = {"B": 3, "C": 4, "D": 5, "K": 3, "h": 4, "w": 4}
    cases = [bench_cuda.Case(c.op, c.name, shape, settings=c.settings) for c in bench_cuda.CASES[:5]]
    monkeypatch.setattr(bench_cuda, "CASES", cases)
    providers = bench_cuda.providers

    def noted(case, device, compiled=False, autotuned=False, backend="reference"):
        asked.append((case.name, compiled, autotuned))
        return providers(case, device, backend="reference")

    monkeypatch.setattr(bench_cuda, "providers", noted)
    monkeypatch.setattr(cuda_checks, "run", lambda device: (7, []))
    file = tmp_path / "gpu.csv"
    assert bench_cuda.run([], cpu, 10, True, file, seconds=0) == 0
    rows = list(csv.DictReader(file.open()))
    assert {row["case"] for row in rows} == {case.name for case in cases}
    assert {row["mode"] for row in rows if row["op"] == "loss"} == {"forward", "forward + backward"}
    assert {row["provider"] for row in rows if row["case"] == "jsd"} == {"infoseg_fast", "as written", "eager"}
    assert not any(compiled or autotuned for _, compiled, autotuned in asked)
    told = capsys.readouterr().out
    assert "7 of 7 checks passed on a GPU" in told and "torch.compile left out" in told

    monkeypatch.setattr(cuda_checks, "run", lambda device: (7, ["assign: AssertionError: value"]))
    assert bench_cuda.run([], cpu, 10, True, None) == 1
    assert "failed: assign" in capsys.readouterr().out
