"""`infoseg bench` on a CPU: the ops beside the best PyTorch of the same algebra, with error, memory and the floor.

The providers of a case run in turn in one process, and their medians are compared. The floor is the larger of two
times: the bytes that must move at the measured rate of a copy, and the operations at the measured rate of a large
matrix product.
"""

import ctypes
import gc
import platform
import random
import statistics
import time
import warnings
from pathlib import Path

import torch

from ..env import commit
from ..ops import OPS
from ..ops.record import Case
from .providers import Step, arguments, chosen_cases, described, differentiated, providers, relative_errors, steps
from .tables import aligned, write_csv

CPU = torch.device("cpu")
RESULTS = ("value", "features", "global_features", "weight", "bias")  # of the ops of features: value and gradients
COLUMNS = (
    "op", "case", "provider", "mode", "shape", "dtype", "device", "threads", "median_ms", "p20_ms", "p80_ms",
    "ratio_to_op", "floor_ms", "share_of_floor", "error", *(f"error_{name}" for name in RESULTS), "extra_mb", "torch",
    "machine", "commit",
)  # fmt: skip
SHOWN = (
    "op", "case", "provider", "median_ms", "p20_ms", "p80_ms", "ratio_to_op", "floor_ms", "share_of_floor", "error",
    "extra_mb",
)  # fmt: skip


def full_step(case: Case, provider, tensors: list[torch.Tensor]) -> Step:
    """The step that is timed on a CPU: with the backward pass if the case has gradients."""
    return list(steps(case, provider, tensors).values())[-1]


def timed(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each step. Every round has a new order, because a step leaves its data in the caches.

    With one thread this is processor time, without the waits for other programs.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = {name: [] for name in steps}
    order, shuffle = list(steps.items()), random.Random(0).shuffle
    for step in steps.values():
        step()
        step()
    for _ in range(repeats):
        shuffle(order)
        for name, step in order:
            start = clock()
            step()
            times[name].append(1e3 * (clock() - start))
    return times


def machine_rates() -> tuple[float, float]:
    """Operations per ms of a large matrix product, and bytes per ms of a copy of 8 MB; medians."""
    a, b = (torch.randn(1024, 1024) for _ in range(2))
    source, target = (torch.ones(2**21) for _ in range(2))
    times = timed({"product": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}, 31)
    median = {name: statistics.median(t) for name, t in times.items()}
    return 2 * 1024**3 / median["product"], 2 * source.numel() * 4 / median["copy"]


def floor_ms(case: Case, rates: tuple[float, float]) -> float:
    """Lower bound of the time of `full_step`, from the `machine_rates`."""
    op, phases = OPS[case.op], ("forward", "backward") if differentiated(case) else ("forward",)
    operations, moved = (sum(count(case, phase) for phase in phases) for count in (op.operations, op.floor))
    return max(operations / rates[0], moved / rates[1])


def extra_memory(step: Step) -> float | None:
    """Peak MB above the inputs while `step` runs, without what it returns; None if it cannot be measured."""
    if not Path("/proc/self/status").exists():
        return None
    kept = step()
    del kept
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    kept = step()
    peak = _status_bytes("VmHWM") - before
    returned = sum(x.nbytes for x in kept)
    return max(peak - returned, 0) / 2**20


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measure(case: Case, repeats: int, compiled: bool, rates: tuple[float, float]) -> list[dict]:
    """The rows of one case. A provider that cannot be compiled here is left out with a warning."""
    tensors, keywords = arguments(case, CPU)
    exact, exact_keywords = arguments(case, CPU, torch.float64)
    truth = full_step(case, providers(case, exact_keywords)["eager"], exact)()
    torch.compiler.reset()  # the compiler gives up after eight cases of one function
    run = {}
    for name, provider in providers(case, keywords, compiled).items():
        try:
            run[name] = full_step(case, provider, tensors)
            run[name]()
        except Exception as error:  # the compiler has many ways to fail, and none concerns this table
            if name != "compiled":
                raise
            run.pop(name, None)
            warnings.warn(f"{case.name}: torch.compile failed: {str(error).splitlines()[0]}", stacklevel=2)
    memory = {name: extra_memory(step) for name, step in run.items()}
    errors = {name: relative_errors(step(), truth) for name, step in run.items()}
    times = timed(run, repeats)
    own, floor = statistics.median(times["infoseg_fast"]), floor_ms(case, rates)
    rows = []
    for name, t in times.items():
        median, tenths = statistics.median(t), statistics.quantiles(t, n=10)
        by_result = errors[name] if len(errors[name]) == len(RESULTS) else ()
        rows.append(
            described(case)
            | {
                "provider": name,
                "mode": "forward + backward" if differentiated(case) else "forward",
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "median_ms": round(median, 3),
                "p20_ms": round(tenths[1], 3),
                "p80_ms": round(tenths[7], 3),
                "ratio_to_op": round(median / own, 2),
                "floor_ms": round(floor, 3),
                "share_of_floor": round(floor / median, 3),
                "error": f"{max(errors[name]):.1e}",
                **{f"error_{result}": f"{e:.1e}" for result, e in zip(RESULTS, by_result, strict=False)},
                "extra_mb": "" if memory[name] is None else round(memory[name], 2),
                "torch": torch.__version__,
                "machine": platform.machine(),
                "commit": commit() or "",
            }
        )
    return rows


def run(names: list[str], repeats: int, compiled: bool, csv_file: Path | None) -> list[dict]:
    """Measure the cases of these names, print a table of each, and write all rows to `csv_file`."""
    rates, threads = machine_rates(), torch.get_num_threads()
    print(f"matrix product {rates[0] / 1e6:.1f} GFLOP/s, copy {rates[1] / 1e6:.1f} GB/s, {threads} thread(s)")
    rows = []
    for case in chosen_cases("cpu", names):
        rows += measure(case, repeats, compiled, rates)
        print(aligned([row for row in rows if (row["op"], row["case"]) == (case.op, case.name)], SHOWN), flush=True)
    if csv_file is not None:
        write_csv(csv_file, COLUMNS, rows)
    return rows
