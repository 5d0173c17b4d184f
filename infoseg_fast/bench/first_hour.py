"""`make test-gpu`: checks, times and trainings on a GPU, within eight minutes.

    python benchmarks/gpu.py [--out DIR] [STAGE ...]

The stages run one after the other, each in a process of its own with a time limit. A stage that
fails, hangs or meets a CUDA error does not stop the others. Each figure is a row of `gpu.csv` as
soon as it is known, and each line of text goes to the screen and to `gpu.log`. The most important
stages come first, in case the time ends early. The functions of the stages are in
`first_hour_stages`.
"""

import argparse
import contextlib
import csv
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("stage", "name", "setting", "provider", "value", "unit", "status", "detail")
PASSED, FAILED, SKIPPED, ENDED = "passed", "failed", "skipped", "ended at its limit"
MOST_WORKERS = 16
TASK_SECONDS = 60.0  # limit of one task of a worker, which may compile several kernels


class Stage(NamedTuple):
    """A part of the first hour. Its function is `first_hour_stages.NAME`."""

    name: str
    seconds: int  # limit of its process
    what: str


STAGES = (
    Stage("environment", 30, "versions, the GPU, and the rate of a copy"),
    Stage("cuda_library", 40, "build the CUDA library; assignments and counts against the host"),
    Stage("compilation", 70, "compile the kernels of the stages below, in parallel processes"),
    Stage("checks", 90, "every kernel against float64, in parallel processes"),
    Stage("loss", 35, "times of the loss: replayed by CUDA graphs, and with the host"),
    Stage("sweep", 60, "times of the loss by warps, stages of the pipeline and splits"),
    Stage("training", 70, "200 steps with their accuracy; bits of graphs and of a resumed run"),
    Stage("trace", 25, "kernels of training steps, as a trace of PyTorch's profiler"),
    Stage("ops", 33, "times of the other ops, and of the loss under torch.compile"),
    Stage("sanitizer", 25, "the checks of the loss under compute-sanitizer, where it is installed"),
)
Command = Sequence[str]
DEFAULT_COMMAND = (sys.executable, "-m", "infoseg_fast.bench.first_hour")


class Table:
    """The rows of `gpu.csv`. A row is on the disk when `add` returns."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.file, self.stage = folder / "gpu.csv", stage
        if not self.file.exists():
            self._append(dict(zip(COLUMNS, COLUMNS, strict=True)))

    def add(self, name: str, value: object = "", unit: str = "", status: str = PASSED, **more: object) -> None:
        """Add a row. `more` has the columns setting, provider and detail."""
        row = {"stage": self.stage, "name": name, "value": value, "unit": unit, "status": status, **more}
        self._append(row)
        print(" ".join(str(row[column]) for column in COLUMNS if row.get(column, "") != ""), flush=True)

    def _append(self, row: dict[str, object]) -> None:
        with self.file.open("a", newline="") as out:
            csv.DictWriter(out, COLUMNS, lineterminator="\n").writerow(row)
            out.flush()
            os.fsync(out.fileno())

    def rows(self, **wanted: str) -> list[dict[str, str]]:
        """The rows so far that have the `wanted` values in these columns."""
        with self.file.open(newline="") as lines:
            return [row for row in csv.DictReader(lines) if all(row[name] == x for name, x in wanted.items())]


def run_stages(folder: Path, stages: Sequence[Stage], command: Command = DEFAULT_COMMAND) -> int:
    """Run the stages. Returns the number of rows that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gpu.csv", "gpu.log"):
        (folder / name).unlink(missing_ok=True)
    table, start = Table(folder, "stages"), time.monotonic()
    for stage in stages:
        print(f"-- {stage.name}: {stage.what} (at most {stage.seconds} s)", flush=True)
        began = time.monotonic()
        status, detail = run_stage(folder, stage, command)
        table.add(stage.name, round(time.monotonic() - began, 1), "s", status, detail=detail)
    failed = table.rows(status=FAILED) + table.rows(status=ENDED)
    for row in failed:
        print(f"{row['status']}: {row['stage']} {row['name']} {row['setting']} {row['detail']}")
    took = time.monotonic() - start
    print(f"{len(failed)} failures, {took:.0f} s; send gpu.csv, gpu.log and gpu_trace.json.gz of {folder.resolve()}")
    return len(failed)


def run_stage(folder: Path, stage: Stage, command: Command) -> tuple[str, str]:
    """Run a stage in a process. Returns its status, and the reason if it did not pass."""
    process = subprocess.Popen(
        [*command, "--out", str(folder), "--process", stage.name],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    last = [""]

    def log() -> None:
        with (folder / "gpu.log").open("a") as log:
            for line in process.stdout or ():
                last[0] = line.strip() or last[0]
                print(line, end="", flush=True)
                log.write(line)
                log.flush()

    # A thread reads, since a process that outlives the stage may keep the pipe open.
    reader = threading.Thread(target=log, daemon=True)
    reader.start()
    try:
        code = process.wait(stage.seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:  # also after the user's interrupt, which reaches only this process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    reader.join(2.0)
    if code is None:
        process.wait()
        return ENDED, f"{stage.seconds} s; its last line: {last[0]}"
    return (PASSED, "") if code == 0 else (FAILED, f"exit code {code}: {last[0]}")


class Worker:
    """A process that runs tasks by their number, one after the other."""

    def __init__(self, command: Command) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, number: int, seconds: float) -> dict[str, Any] | None:
        """The answer to a task. None: the process ended, or did not answer in time."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("answer "):
                    return json.loads(line.removeprefix("answer "))
        except OSError:
            pass  # the process ended before it read the task
        finally:
            timer.cancel()
        return None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def spread(
    names: Sequence[str], command: Command, report: Callable[[str, dict[str, Any]], None], number: int = MOST_WORKERS
) -> None:
    """Run the tasks `names` in parallel processes, and give each answer to `report`.

    A process that ends or hangs in a task, as after a CUDA error, fails only this task. A new
    process runs the next one.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(names)):
        waiting.put(i)
    lock = threading.Lock()

    def serve() -> None:
        worker = None
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            worker = worker or Worker(command)
            answer = worker.run(task, TASK_SECONDS)
            if answer is None or answer.get("broken"):
                worker.close()
                worker = None
            with lock:
                report(names[task], answer or {"error": "its process ended or hung"})
        if worker:
            worker.close()

    threads = [threading.Thread(target=serve) for _ in range(min(number, len(names), os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description="Test and time the package on a GPU.")
    names = [stage.name for stage in STAGES]
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(names)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.csv, gpu.log and the trace")
    parser.add_argument("--process", help=argparse.SUPPRESS)  # a stage in this process
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the tasks of a stage, whose numbers come from stdin
    args = parser.parse_args(arguments)
    if args.process or args.worker:
        from . import first_hour_stages

        return first_hour_stages.main(args.process, args.worker, args.out)
    for name in args.stages:
        if name not in names:
            parser.error(f"STAGE: {name!r} is none of {', '.join(names)}")
    import torch

    from .. import kernels

    reason = None if torch.cuda.is_available() else "no CUDA device can be used here"
    reason = reason or kernels.unavailable()
    if reason:
        print(f"{parser.prog}: {reason}", file=sys.stderr)
        return 2
    chosen = [stage for stage in STAGES if not args.stages or stage.name in args.stages]
    return 1 if run_stages(args.out, chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
