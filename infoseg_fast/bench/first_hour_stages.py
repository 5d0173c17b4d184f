"""The stages of `first_hour`.

Some stages are a list of tasks that run in worker processes (`first_hour.spread`), so that an error
in one task does not harm the others. The other stages are functions that write rows to the table.
"""

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ..env import commit, versions
from ..errors import first_line
from ..kernels import configs, mutual_information_loss, plans
from ..ops import OPS
from ..ops.record import Case
from . import cuda, cuda_checks, providers
from .first_hour import DEFAULT_COMMAND, FAILED, MOST_WORKERS, PASSED, SKIPPED, Table, spread
from .first_hour_library import DEVICE, REPEATS, library
from .first_hour_training import Run, painted, training

COMMAND = DEFAULT_COMMAND  # of a worker process
CALLS = 30  # calls whose time with the host is measured together
LOSS = "mutual_information_loss"
SWEPT_KERNELS = ("loss_forward", "loss_image_gradient")
SWEPT_CASES = ("jsd", "jsd bfloat16", "jsd Potsdam", "jsd Potsdam bfloat16")
WARPS, STAGES, PROGRAMS = (4, 8), (2, 3, 4), (128, 256, 512)
TRACED_STEPS = 8
SANITIZED_CHECKS = 3
UNCHECKED = "measured, though a check failed"

Row = dict[str, Any]
Task = tuple[str, Callable[[], list[Row] | None]]


def main(stage: str | None, worker: str | None, folder: Path) -> int:
    """Run a stage, or the tasks of a stage whose numbers come from stdin."""
    if worker:
        serve([act for _, act in TASKS[worker][0]()])
    elif stage in TASKS:
        run_tasks(Table(folder, stage))
    elif stage:
        FUNCTIONS[stage](Table(folder, stage))
    return 0


def serve(tasks: list[Callable[[], list[Row] | None]]) -> None:
    """Run the tasks whose numbers come line by line from stdin. The answer to each is a line of
    JSON. After an error that left the device unusable the process ends.
    """
    for line in sys.stdin:
        start, answer = time.monotonic(), dict[str, Any]()
        try:
            answer["rows"] = tasks[int(line)]() or []
        except Exception as error:  # any error on a device is a failure of this task
            answer["error"] = f"{type(error).__name__}: {first_line(error)}"
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            answer |= {"broken": True, "error": answer.get("error") or first_line(error)}
        answer["seconds"] = round(time.monotonic() - start, 2)
        print("answer " + json.dumps(answer), flush=True)
        if "broken" in answer:
            return


def run_tasks(table: Table) -> None:
    """Run the tasks of a stage. A task without rows gets one row with its seconds.

    The times of an op whose checks failed are marked.
    """
    tasks, number = TASKS[table.stage]
    failed_checks = [row["name"] for row in table.rows(stage="checks", status=FAILED)]
    counts: Counter[str] = Counter()

    def report(name: str, answer: dict[str, Any]) -> None:
        error = answer.get("error", "")
        counts[FAILED if error else PASSED] += 1
        if error or not answer["rows"]:
            table.add(name, answer.get("seconds", ""), "s", FAILED if error else PASSED, detail=error)
        for row in [] if error else answer["rows"]:
            wrong = [check for check in failed_checks if check.startswith(f"{row['name']} ")]
            if wrong and "status" not in row:
                row |= {"status": UNCHECKED, "detail": f"{row.get('detail', '')}; failed: {wrong[0]}".lstrip("; ")}
            table.add(**row)

    spread([name for name, _ in tasks()], [*COMMAND, "--worker", table.stage], report, number)
    table.add("tasks that passed", counts[PASSED], f"of {counts.total()}", FAILED if counts[FAILED] else PASSED)


# Tasks


def check_tasks() -> Iterator[Task]:
    yield from cuda_checks.checks(DEVICE, cuda_checks.SMALL)  # type: ignore[misc]


def compile_tasks() -> Iterator[Task]:
    """Tasks that compile the kernels of the later stages. Triton caches them on the disk."""
    for recipe in ("default", "paper"):
        yield f"training, {recipe}", lambda recipe=recipe: Run(recipe, steps=4).close()
    for case, warps, stages in itertools.product(swept_cases(), WARPS, STAGES):
        yield swept_name(case, warps, stages), lambda *, given=(case, warps, stages): swept(*given, time=False)
    for case in timed_cases():
        yield f"{case.op} {case.name}", lambda case=case: [run() for run in own_steps(case).values()] and None


def loss_tasks() -> Iterator[Task]:
    for case in timed_cases():
        if case.op == LOSS:
            yield case.name, lambda case=case: times_of(case, "infoseg_fast", "eager", "as written")


def ops_tasks() -> Iterator[Task]:
    for case in timed_cases():
        if case.op != LOSS:
            yield f"{case.op} {case.name}", lambda case=case: times_of(case, "infoseg_fast", "eager")
    yield "torch.compile of the loss", lambda: times_of(timed_cases()[0], "compiled")


def sweep_tasks() -> Iterator[Task]:
    for case, warps, stages in itertools.product(swept_cases(), WARPS, STAGES):
        yield swept_name(case, warps, stages), lambda *, given=(case, warps, stages): swept(*given)


TASKS: dict[str, tuple[Callable[[], Iterator[Task]], int]] = {
    "compilation": (compile_tasks, MOST_WORKERS),
    "checks": (check_tasks, MOST_WORKERS),
    "loss": (loss_tasks, 1),  # one process at a time, so that it has the GPU to itself
    "sweep": (sweep_tasks, 1),
    "ops": (ops_tasks, 1),
}


def timed_cases() -> list[Case]:
    """The cases of the loss first, and among them those with one negative."""
    found = providers.chosen_cases("cuda", ())
    return sorted(found, key=lambda case: (case.op != LOSS, case.op == LOSS and case.negatives > 1))


def setting_of(case: Case, mode: str) -> str:
    return f"{case.name}, {providers.shape_of(case)} {str(case.dtype)[6:]} {mode}"


def times_of(case: Case, *names: str) -> list[Row]:
    """Times of the providers: on the device alone, and with the host."""
    tensors, keywords = providers.arguments(case, DEVICE)
    found = providers.providers(case, keywords, compiled="compiled" in names, backend="triton")
    rows: list[Row] = []
    for name in [name for name in names if name in found]:
        about = {"name": case.op, "provider": name, "unit": "us"}
        try:
            for mode, step in providers.steps(case, found[name], tensors).items():
                times = cuda.replayed(step, REPEATS, DEVICE)
                least = sum(OPS[case.op].floor(case, phase) for phase in mode.split(" + "))
                extent = f"{min(times):.1f} to {max(times):.1f} us; at least {least / 1e6:.1f} MB are moved"
                here = about | {"setting": setting_of(case, mode)}
                rows.append(here | {"value": round(statistics.median(times), 2), "detail": extent})
                rows.append(here | {"value": round(cuda.with_host(step, CALLS), 1), "unit": "us with the host"})
        except Exception as error:  # the other providers are still timed
            own = name == "infoseg_fast"  # an error of PyTorch's own code is no failure
            rows.append(about | {"setting": setting_of(case, "")} | not_measured(error, own))
    return rows


def not_measured(error: Exception, own: bool = True) -> Row:
    """The columns of a time that could not be measured. Too large a tile is no failure."""
    kind = type(error).__name__
    return {"status": FAILED if own and kind != "OutOfResources" else SKIPPED, "detail": f"{kind}: {first_line(error)}"}


def own_steps(case: Case) -> dict[str, providers.Step]:
    tensors, keywords = providers.arguments(case, DEVICE)
    own = providers.providers(case, keywords, backend="triton")["infoseg_fast"]
    return providers.steps(case, own, tensors)


def swept_cases() -> list[Case]:
    return [case for case in providers.chosen_cases("cuda", [LOSS]) if case.name in SWEPT_CASES]


def swept_name(case: Case, warps: int, stages: int) -> str:
    return f"{case.name}, {warps} warps, {stages} stages"


def swept(case: Case, warps: int, stages: int, time: bool = True) -> list[Row]:
    """Times of the loss with other numbers of warps, pipeline stages and programs than its tables
    have.
    """
    rows_of, rows = configs.rows, []

    def changed(kernel: str, key: configs.Key) -> list[configs.Config]:
        found = rows_of(kernel, key)
        if kernel not in SWEPT_KERNELS:
            return found
        return [replace(row, num_warps=warps, num_stages=stages, registers=None) for row in found]

    for programs, (mode, step) in itertools.product(PROGRAMS, own_steps(case).items()):
        how = f"{warps} warps, {stages} stages, {programs} programs"
        row: Row = {"name": LOSS, "setting": setting_of(case, mode), "provider": how, "unit": "us"}
        numbers = {"PROGRAMS": programs, "PROGRAMS_WITH_PARTS": programs}
        plans.forget_plans()
        with patch.object(configs, "rows", changed), patch.multiple(mutual_information_loss, **numbers):
            try:
                times = cuda.replayed(step, REPEATS, DEVICE) if time else [len(step())]
                rows.append(row | {"value": round(statistics.median(times), 2)})
            except Exception as error:
                rows.append(row | not_measured(error))
        plans.forget_plans()
    return rows if time else []


# The other stages


def environment(table: Table) -> None:
    found = torch.cuda.get_device_properties(DEVICE)
    for name, value in {
        "GPU": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory": f"{found.total_memory / 2**30:.0f} GiB",
        "CUDA of PyTorch": torch.version.cuda,
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": output("nvcc", "--version").rpartition("\n")[2],
        "cores": os.cpu_count(),
        "commit": commit(),
        **versions(),
    }.items():
        table.add(name, value)
    table.add("copy of 1 GB", round(cuda.copy_rate(DEVICE) / 1e6), "GB/s")


def output(*command: str) -> str:
    """The standard output of a command. "": there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()


def trace(table: Table) -> None:
    """A trace of training steps of the default recipe, without a CUDA graph, which would hide
    waits.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with tempfile.TemporaryDirectory() as folder:
        data = painted(Path(folder) / "data")
        with torch.profiler.profile(activities=activities) as profile:
            Run("default", data, cuda_graph="off", log_every=TRACED_STEPS, steps=TRACED_STEPS).close()
    profile.export_chrome_trace(str(table.file.parent / "gpu_trace.json.gz"))
    events = profile.key_averages()
    print(events.table(sort_by="self_device_time_total", row_limit=25))
    for event in events:
        if event.key.startswith(("cudaStreamSynchronize", "cudaDeviceSynchronize", "Memcpy", "cudaLaunchKernel")):
            table.add(event.key, event.count, f"in a run of {TRACED_STEPS} steps, with its start and its evaluation")


def sanitizer(table: Table) -> None:
    """Some checks of the loss under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        table.add("memcheck", status=SKIPPED, detail="compute-sanitizer is not installed")
        return
    chosen = [i for i, (name, _) in enumerate(check_tasks()) if name.startswith(LOSS)][:SANITIZED_CHECKS]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", *COMMAND, "--worker", "checks"]
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError), process.stdin:  # a tool that ends at once reads nothing
            process.stdin.write("".join(f"{number}\n" for number in chosen))
        for line in process.stdout:  # printed at once, in case the stage reaches its limit
            print(line, end="", flush=True)
            lines.append(line.strip())
    own = [line.strip("= ") for line in lines if line.startswith("====") and "COMPUTE-SANITIZER" not in line]
    answers = [json.loads(line.removeprefix("answer ")) for line in lines if line.startswith("answer ")]
    passed = sum("error" not in answer for answer in answers)
    code = process.returncode
    table.add("memcheck", code, "exit code", FAILED if code else PASSED, detail=own[0] if code and own else "")
    table.add("checks under memcheck", passed, f"of {len(chosen)}", PASSED if passed == len(chosen) else FAILED)


FUNCTIONS: dict[str, Callable[[Table], None]] = {
    "environment": environment,
    "cuda_library": library,
    "training": training,
    "trace": trace,
    "sanitizer": sanitizer,
}
