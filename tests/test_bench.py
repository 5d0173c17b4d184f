"""`infoseg bench`: its rows, and that the baselines it compares with compute the same thing."""

import csv

import pytest
import torch

from infoseg_fast import bench
from infoseg_fast.cli import main


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_the_baseline_computes_what_the_op_computes(case):
    small = bench.Case(case.op, case.name, B=4, C=8, D=6, K=3, side=6, settings=case.settings, masked=case.masked)
    x, mask = bench.inputs(small, "cpu", torch.float64)
    results = [bench.step_of(small, f, x, mask)() for f in bench.providers(small, compiled=False).values()]
    for other in results[1:]:
        if case.op == "segment":
            assert torch.equal(results[0][0], other[0])
        else:
            torch.testing.assert_close(results[0][0], other[0])


def test_bench_gives_the_error_of_the_loss_and_of_each_gradient():
    case = bench.Case("loss", "jsd", B=4, C=8, D=6, K=3, side=6)
    row = bench.measure(case, "cpu", 3, False, (1e6, 1e6))[0]
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
