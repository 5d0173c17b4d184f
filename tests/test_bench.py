"""`infoseg bench`: its rows and errors, and that the baselines compute what the ops compute."""

import csv
import importlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infoseg_fast.bench import cpu, cuda, cuda_checks, regressions
from infoseg_fast.bench import providers as bench
from infoseg_fast.bench.providers import RESULTS, arguments, chosen_cases, providers, relative_errors, steps
from infoseg_fast.bench.tables import write_csv
from infoseg_fast.cli import main
from infoseg_fast.ops import OPS

ROOT = Path(__file__).resolve().parent.parent
TINY = {"B": 4, "C": 8, "D": 6, "K": 3, "h": 6, "w": 5, "size": (24, 20)}
CASES = {
    (case.op, str(case.settings), case.masked): case for use in ("cpu", "cuda") for case in chosen_cases(use, ())
}.values()


def tiny(case):
    return replace(case, **TINY | {"C": min(case.C, TINY["C"])})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}, {case.name}")
def test_the_baselines_compute_what_the_ops_compute(case):
    small = replace(tiny(case), dtype=torch.float64)
    tensors, keywords = arguments(small, cpu.CPU)
    own, *others = (steps(small, function, tensors) for function in providers(small, keywords).values())
    for mode, step in own.items():
        for other in others:
            for a, b in zip(step(), other[mode](), strict=True):
                torch.testing.assert_close(a, b)


def test_every_op_has_a_case_on_the_cpu():
    assert {case.op for case in chosen_cases("cpu", ())} == set(OPS)


def test_bench_gives_the_error_of_the_loss_and_of_each_gradient():
    case = tiny(chosen_cases("cpu", ["jsd"])[0])
    rows = cpu.measure(case, 3, False, (1e6, 1e6))
    (row,) = [row for row in rows if row["provider"] == "infoseg_fast" and row["mode"] == "forward + backward"]
    errors = [float(row[f"error_{name}"]) for name in RESULTS]
    assert float(row["error"]) == max(errors) < 1e-5
    assert set(row) == set(cpu.COLUMNS)


def test_the_error_of_labels_is_the_share_that_differs():
    assert relative_errors([torch.tensor([1, 2, 3, 4])], [torch.tensor([1, 2, 3, 5])]) == [0.25]


@pytest.mark.parametrize("op", ["linear_sum_assignment", "confusion_matrix"])
def test_peers_compute_what_the_op_computes(op):
    case = tiny(chosen_cases("cpu", [op])[0])
    tensors, keywords = arguments(case, cpu.CPU)
    own, *others = providers(case, keywords, with_peers=True).items()
    found = {name: steps(case, function, tensors)["forward"]() for name, function in others}
    assert set(found) >= {"eager"} and (op != "confusion_matrix" or "as IIC counts" in found)
    for results in found.values():
        for a, b in zip(steps(case, own[1], tensors)["forward"](), results, strict=True):
            assert torch.equal(a, b)


@pytest.fixture
def known_rates(monkeypatch):
    """Rates of the machine that need not be measured."""
    monkeypatch.setattr(cpu, "machine_rates", lambda: (1e8, 1e7))


CHEAP = ["bench", "information_of_moments", "--repeats", "3", "--no-compile"]


def test_bench_writes_a_row_for_each_provider(known_rates, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    assert main(["bench", "assign", *CHEAP[1:], "--csv", str(file)]) == 0
    rows = list(csv.DictReader(file.open()))
    modes = ("forward", "forward + backward")
    expected = [
        (op, name, mode)
        for op in ("assign", "information_of_moments")
        for name in ("infoseg_fast", "eager")
        for mode in modes
    ]
    assert [(row["op"], row["provider"], row["mode"]) for row in rows] == expected
    assert all(float(row["error"]) < 1e-5 and float(row["median_ms"]) > 0 for row in rows)
    assert rows[0]["version"] == rows[0]["infoseg_fast"] and rows[2]["version"] == f"torch {torch.__version__}"
    assert all(row["machine"] and row["python"] and row["numpy"] for row in rows)
    assert "assign" in capsys.readouterr().out


def test_bench_tells_by_ratio_what_became_slower(known_rates, tmp_path, capsys):
    old = tmp_path / "old.csv"
    assert main([*CHEAP, "--csv", str(old)]) == 0
    rows = list(csv.DictReader(old.open()))

    def changed(factor, **values):
        ours = [row for row in rows if row["provider"] == "infoseg_fast"]
        others = [row for row in rows if row not in ours]
        return [row | {"median_ms": str(float(row["median_ms"]) * factor)} | values for row in ours] + others

    verdicts = {}
    for name, before in {
        "slower": changed(0.8), "as fast": changed(0.9), "faster": changed(2), "busy": [
            row | {"median_ms": str(float(row["median_ms"]) * 0.5)} for row in rows
        ], "slower, other machine": changed(0.8, machine="an abacus"),
    }.items():  # fmt: skip
        found = regressions.compared(rows, before)
        verdicts[name] = {row["verdict"] for row in found}
        assert len(found) == 2 and (found[0]["ratio"] == "other machine") == ("machine" in name)
    slower = {"slower", "slower, other machine"}
    assert verdicts == {name: {"slower"} if name in slower else {""} for name in verdicts}

    write_csv(old, cpu.COLUMNS, changed(0.01))
    capsys.readouterr()
    assert main([*CHEAP, "--compare", str(old)]) == 1
    assert "2 of 2 slower than in" in capsys.readouterr().out
    for text, named in (("", "has no 'op'"), ("op,case\n1,2\n", "has no 'mode'"), (None, "cannot be read")):
        old.unlink(missing_ok=True)
        if text is not None:
            old.write_text(text)
        assert main([*CHEAP, "--compare", str(old)]) == 2
        error = capsys.readouterr().err
        assert named in error and "--compare" in error and error.count("\n") == 1


def test_bench_does_not_report_an_op_whose_results_are_wrong(known_rates, tmp_path, monkeypatch, capsys):
    op, file = OPS["information_of_moments"], tmp_path / "rows.csv"
    monkeypatch.setitem(OPS, op.name, replace(op, function=lambda *x, **more: 1.01 * op.function(*x, **more)))
    assert main([*CHEAP, "--csv", str(file)]) == 1
    assert list(csv.DictReader(file.open())) == []
    error = capsys.readouterr().err
    assert error.startswith("infoseg bench: information_of_moments, information, forward: error 1.0e-02")


def test_bench_names_a_file_that_cannot_be_written_before_it_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "run", lambda *arguments: pytest.fail("it measured"))
    for file, told in ((tmp_path, "is a folder"), (tmp_path / "none/rows.csv", "there is no folder")):
        assert main([*CHEAP, "--csv", str(file)]) == 2
        error = capsys.readouterr().err
        assert f"--csv {file}" in error and told in error and error.count("\n") == 1


@pytest.mark.parametrize("script", ["kernel_tables", "ratio_plot", "scaling"])
def test_scripts_name_a_file_that_has_no_such_rows(script, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    main = importlib.import_module(f"benchmarks.{script}").main
    file, picture = tmp_path / "rows.csv", str(tmp_path / "picture.png")
    arguments = {"kernel_tables": [], "ratio_plot": [picture], "scaling": ["--plot", picture]}[script]
    for text, told in ((None, "cannot be read: No such file"), ("", "it has no '"), ("a,b\n1,2\n", "it has no '")):
        if text is not None:
            file.write_text(text)
        with pytest.raises(SystemExit) as ended:
            main([*(["--from"] if script == "scaling" else []), str(file), *arguments])
        assert ended.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "picture.png").exists()


def test_the_tables_of_the_kernels_have_the_rows_of_the_page(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import kernel_tables

    kernel_tables.main([str(ROOT / "benchmarks/timings/amx.csv")])
    printed = capsys.readouterr().out
    page = (ROOT / "docs/cpu_kernels.md").read_text()
    (errors,) = re.findall(r"(?<=^\| jsd K=27 )\| 8.0e-08.*$", page, flags=re.MULTILINE)
    assert f"| jsd K=27 {errors}\n" in printed and "| refined_labels | refined labels 128x128 | 4.4421" in printed


def test_bench_names_an_unknown_op(capsys):
    for option, value, least in (("--threads", "0", 1), ("--repeats", "2", 3)):
        assert main(["bench", option, value]) == 2
        assert f"{option} must be at least {least}, not {value}" in capsys.readouterr().err
    assert main(["bench", "sorting"]) == 2
    assert "sorting" in capsys.readouterr().err


def test_the_gpu_bench_takes_the_repeats_that_are_asked_for(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("infoseg_fast.kernels.unavailable", lambda: None)
    monkeypatch.setattr(cuda, "run", lambda names, device, repeats, *rest: given.append(repeats) or 0)
    assert main(["bench", "--device", "cuda", "--repeats", "3"]) == 0
    assert given == [3]


def test_without_a_gpu_the_gpu_bench_ends_with_one_line(tmp_path):
    """From a bare checkout: the kernels lie beside the package, and nothing is installed."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("infoseg_fast", "kernels", "benchmarks"):
        ignore = shutil.ignore_patterns("kernels") if name == "infoseg_fast" else None
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    code = "import sys, runpy; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]; "
    code += "sys.argv = ['benchmarks/gpu.py']; runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "benchmarks/gpu.py: no CUDA device can be used here\n"


def test_the_gpu_bench_times_checked_kernels_and_stops_compiling_after_the_limit(monkeypatch, tmp_path, capsys):
    """On the CPU, with the calls of the device replaced: the course of the command, not its
    figures.
    """
    compilations = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(cuda, "copy_rate", lambda device: 1e6)
    monkeypatch.setattr(cuda, "timed", lambda step, repeats, device: [float(len(step()))] * repeats)
    monkeypatch.setattr(cuda, "extra_memory", lambda step, device: 1.0)
    cases = [tiny(case) for case in chosen_cases("cuda", ["mutual_information_loss", "assign", "segment"])]
    monkeypatch.setattr(bench, "chosen_cases", lambda use, names: cases)

    def on_the_reference(case, keywords, compiled=False, autotuned=False, backend="auto"):
        compilations.append(compiled or autotuned)
        return providers(case, keywords, backend="reference")

    monkeypatch.setattr(bench, "providers", on_the_reference)
    monkeypatch.setattr(cuda_checks, "run", lambda device: (7, []))
    file = tmp_path / "gpu.csv"
    assert cuda.run([], cpu.CPU, 10, True, file, max_compile_seconds=0) == 0
    rows = list(csv.DictReader(file.open()))
    assert {row["case"] for row in rows} == {case.name for case in cases}
    assert {row["mode"] for row in rows if row["op"] == "assign"} == {"forward", "forward + backward"}
    assert {row["provider"] for row in rows if row["case"] == "jsd"} == {"infoseg_fast", "as written", "eager"}
    assert not any(compilations)
    printed = capsys.readouterr().out
    assert "7 of 7 checks passed on a GPU" in printed and "torch.compile left out" in printed

    monkeypatch.setattr(cuda_checks, "run", lambda device: (7, ["assign: AssertionError: value"]))
    assert cuda.run([], cpu.CPU, 10, True, None) == 1
    assert "failed: assign" in capsys.readouterr().out


def test_scaling_curves_have_exponents_and_are_drawn_from_their_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import scaling

    assert scaling.exponent([1, 2, 4, 8], [9.0, 2.0, 8.0, 32.0]) == pytest.approx(2)
    monkeypatch.setattr(scaling, "MIDDLE", {key: TINY[key] for key in ("B", "C", "D", "K", "h", "w")})
    monkeypatch.setattr(scaling, "SIZES", {"B": (2, 4, 8), "P": (5, 10), "n": (1, 3), "threads": (1,)})
    file = tmp_path / "rows.csv"
    scaling.main(["--repeats", "3", "--csv", str(file)])
    rows = list(csv.DictReader(file.open()))
    assert [row["value"] for row in rows if row["size"] == "B"] == ["2", "2", "4", "4", "8", "8"]
    assert {row["size"] for row in rows} == {"B", "P", "n", "threads"} and rows[0]["machine"]
    scaling.main(["--from", str(file), "--plot", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_the_rows_of_a_bench_are_drawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import ratio_plot

    file = ROOT / "benchmarks/timings/ops.csv"
    found = ratio_plot.ratios(list(csv.DictReader(file.open())))
    assert all(of_case["infoseg_fast"][1] == pytest.approx(1) for of_case in found.values())
    assert found["jsd"]["as written"][1] > 10  # forward + backward
    ratio_plot.main([str(file), str(tmp_path / "ratios.png")])
    assert (tmp_path / "ratios.png").stat().st_size > 5000
