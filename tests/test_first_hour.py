"""The first hour on a GPU: its table and its processes, and a rehearsal of all stages."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infoseg_fast.bench import first_hour
from infoseg_fast.bench.first_hour import COLUMNS, ENDED, FAILED, PASSED, STAGES, Stage, Table

pytest.importorskip("triton")

WORKER = """
import json, os, sys, time
for line in sys.stdin:
    number = int(line)
    if number == 1: os._exit(3)
    if number == 2: time.sleep(60)
    answer = {"pid": os.getpid()} | ({"broken": True, "error": "a CUDA error"} if number == 3 else {})
    print("a line of text", flush=True)
    print("answer " + json.dumps(answer), flush=True)
"""


def test_a_task_that_ends_hangs_or_breaks_its_process_costs_no_other(monkeypatch):
    monkeypatch.setattr(first_hour, "TASK_SECONDS", 2.0)
    found = {}
    names = ["first", "ends", "hangs", "breaks", "fifth", "sixth"]
    first_hour.spread(names, [sys.executable, "-c", WORKER], lambda name, answer: found.update({name: answer}), 1)
    errors = {name: answer["error"] for name, answer in found.items() if "error" in answer}
    lost = "its process ended or hung"
    assert errors == {"ends": lost, "hangs": lost, "breaks": "a CUDA error"} and list(found) == names
    assert found["fifth"]["pid"] == found["sixth"]["pid"] != found["breaks"]["pid"] != found["first"]["pid"]


def test_a_row_is_on_the_disk_at_once_and_stages_end_at_their_limit(tmp_path, capsys):
    table = Table(tmp_path, "mine")
    table.add("a, b", 3, "us", provider='"x"')
    assert (tmp_path / "gpu.csv").read_text() == ",".join(COLUMNS) + '\nmine,"a, b",,"""x""",3,us,passed,\n'
    code = "import sys, time; name = sys.argv[-1]; print(name, 'begins', flush=True)\n"
    code += "time.sleep(60 * (name == 'slow')); sys.exit(4 * (name == 'wrong'))"
    stages = [Stage("wrong", 30, "a"), Stage("slow", 2, "b"), Stage("right", 30, "c")]
    assert first_hour.run_stages(tmp_path, stages, [sys.executable, "-c", code]) == 2
    rows = Table(tmp_path, "").rows()
    assert [(row["name"], row["status"]) for row in rows] == [("wrong", FAILED), ("slow", ENDED), ("right", PASSED)]
    assert rows[0]["detail"] == "exit code 4: wrong begins" and "slow begins" in rows[1]["detail"]
    assert (tmp_path / "gpu.log").read_text() == "wrong begins\nslow begins\nright begins\n"
    assert "2 failures" in capsys.readouterr().out


def test_all_stages_together_take_less_than_eight_minutes():
    assert sum(stage.seconds for stage in STAGES) < 480
    assert min(stage.seconds for stage in STAGES if stage.name in ("compilation", "checks")) > first_hour.TASK_SECONDS


# Stands for compute-sanitizer. It answers in place of the program that it is given, as $SANITIZER says.
SANITIZER = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
case "$SANITIZER" in
  hangs) echo $$ > "$0.pid"; exec sleep 60;;
  broken) echo "========= Error: No attachable process found" >&2; exit 1;;
esac
while read number; do echo 'answer {"rows": []}'; done
if [ "$SANITIZER" = finds ]; then
  echo "========= Invalid __global__ write of size 4 bytes"; echo "=========     at loss_forward"; exit 9
fi
echo "========= ERROR SUMMARY: 0 errors"
"""


def install_sanitizer(folder: Path) -> str:
    """Write the stand-in into `folder`. Returns the PATH that has it."""
    tool = folder / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("passes", [("0", PASSED, ""), ("2", PASSED, "")]),
        ("finds", [("9", FAILED, "Invalid __global__ write of size 4 bytes"), ("2", PASSED, "")]),
        ("broken", [("1", FAILED, "Error: No attachable process found"), ("0", FAILED, "")]),
    ],
)
def test_the_table_says_what_compute_sanitizer_found(how, expected, tmp_path, monkeypatch):
    from infoseg_fast.bench import first_hour_stages

    names = ["assign", f"{first_hour_stages.LOSS} one", f"{first_hour_stages.LOSS} two"]
    monkeypatch.setattr(first_hour_stages, "check_tasks", lambda: [(name, None) for name in names])
    monkeypatch.setenv("PATH", install_sanitizer(tmp_path))
    monkeypatch.setenv("SANITIZER", how)
    first_hour_stages.sanitizer(Table(tmp_path, "sanitizer"))
    rows = Table(tmp_path, "").rows(stage="sanitizer")
    assert [row["name"] for row in rows] == ["memcheck", "checks under memcheck"]
    assert [(row["value"], row["status"], row["detail"]) for row in rows] == expected


# New memory is 0. glibc does not fill the memory that its caches of threads give back, so they are off.
ZEROS = {"MALLOC_PERTURB_": "255", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


@pytest.mark.long
def test_every_stage_runs_with_a_mocked_driver_whatever_the_others_meet(tmp_path):
    program = Path(__file__).with_name("mock_gpu.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path, "240"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ZEROS | {"OMP_NUM_THREADS": "1", "PATH": install_sanitizer(tmp_path)},
    )
    assert done.returncode == 1, done.stdout + done.stderr  # as some checks fail, and three stages
    rows = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    stages = {row["name"]: row["status"] for row in rows if row["stage"] == "stages"}
    assert list(stages) == [
        *[s.name for s in STAGES[:2]],
        "crashes",
        "hangs",
        *[s.name for s in STAGES[2:]],
        "sanitizer_hangs",
    ]
    failed = {name: status for name, status in stages.items() if status != PASSED}
    assert failed == {"crashes": FAILED, "hangs": ENDED, "sanitizer_hangs": ENDED}
    by_stage = {name: [row for row in rows if row["stage"] == name] for name in stages}

    checks = {row["name"]: (row["status"], row["detail"]) for row in by_stage["checks"]}
    lost = (FAILED, "its process ended or hung")
    assert checks["one that ends its process"] == checks["one that hangs"] == lost
    assert "illegal memory access" in checks["one that leaves the device unusable"][1]
    assert checks["a check after them"][0] == checks["a check that passes"][0] == PASSED
    for name in ("loss", "sweep", "ops"):
        timed = [row for row in by_stage[name] if row["unit"].startswith("us")]
        assert timed and all(float(row["value"]) > 0 for row in timed)
        assert {row["status"] for row in timed} == {"measured, though a check failed"}
    assert {row["unit"] for row in by_stage["loss"]} >= {"us", "us with the host"}
    assert {row["provider"] for row in by_stage["loss"]} >= {"infoseg_fast", "eager", "as written"}
    # 2 cases, 2 numbers of warps, 2 of programs, forward with and without backward
    assert len([row for row in by_stage["sweep"] if row["provider"]]) == 16
    assert all(row["status"] == PASSED for row in by_stage["compilation"] + by_stage["cuda_library"])

    training = {(row["name"], row["unit"]): row for row in by_stage["training"]}
    assert float(training["default", "accuracy of labels"]["value"]) > 0.4
    assert float(training["default", "steps/s"]["value"]) > 0
    pairs = [row for row in by_stage["training"] if row["unit"] == "tensors with other bits"]
    assert [(row["value"], row["status"], row["detail"]) for row in pairs] == 3 * [("0", PASSED, "")]
    assert training["wrong", ""]["status"] == FAILED and "--jitter" in training["wrong", ""]["detail"]
    assert (tmp_path / "gpu_trace.json.gz").stat().st_size > 1000
    assert [row["status"] for row in by_stage["sanitizer"]] == [PASSED, PASSED]
    hung = Path("/proc", (tmp_path / "compute-sanitizer.pid").read_text().strip(), "stat")
    assert not hung.exists() or hung.read_text().split()[2] == "Z"  # nothing runs on
    log = (tmp_path / "gpu.log").read_text()
    assert "training default" in log and "checks a check that passes" in log
