"""`infoseg bench` on a CPU: times of the ops and of the best PyTorch of the same algebra, with
errors, memory and the floor.

The providers of a case run in turn in one process, and their medians are compared. The floor is the
larger of two times: the time of the bytes that must move, at the measured rate of a copy, and the
time of the operations, at the measured rate of a large matrix product.
"""

import ctypes
import gc
import random
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from ..ops import OPS
from ..ops.record import Case
from . import providers
from .providers import INSTALLED, MEASURED, SHOWN, Step, WrongResultError
from .tables import aligned, write_csv

CPU = torch.device("cpu")
COLUMNS = (*MEASURED, "device", "threads", *INSTALLED)


def timed(steps: dict, repeats: int) -> dict:
    """Milliseconds of the calls of each step. Every round has a new order, because a step leaves
    its data in the caches.

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


def floor_ms(case: Case, mode: str, rates: tuple[float, float]) -> float:
    """Lower bound of the time of a mode in ms, from `machine_rates`."""
    op, phases = OPS[case.op], mode.split(" + ")
    operations, moved = (sum(count(case, phase) for phase in phases) for count in (op.operations, op.floor))
    return max(operations / rates[0], moved / rates[1])


def extra_memory(step: Step) -> float | None:
    """Peak MB above the inputs while `step` runs, without its results. None: it cannot be measured
    here.
    """
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
    """The rows of one case, with the columns `COLUMNS`."""
    rows = providers.measure(
        case, CPU, partial(timed, repeats=repeats), extra_memory, partial(floor_ms, rates=rates), compiled=compiled,
        with_peers=True,
    )  # fmt: skip
    common = {"device": "cpu", "threads": torch.get_num_threads()} | providers.installed()
    return [row | common for row in rows]


def run(names: list[str], repeats: int, compiled: bool, csv_file: Path | None) -> tuple[list[dict], list[str]]:
    """Measure the cases of these names, print a table of each, and write all rows to `csv_file`.

    Returns:
        The rows, and a line for each case whose results are wrong. Such a case has no row.
    """
    rates, threads = machine_rates(), torch.get_num_threads()
    print(f"matrix product {rates[0] / 1e6:.1f} GFLOP/s, copy {rates[1] / 1e6:.1f} GB/s, {threads} thread(s)")
    rows, wrong = [], []
    for case in providers.chosen_cases("cpu", names):
        try:
            found = measure(case, repeats, compiled, rates)
        except WrongResultError as error:
            wrong.append(str(error))
            print(f"wrong: {error}", flush=True)
            continue
        print(aligned(found, SHOWN), flush=True)
        rows += found
    if csv_file is not None:
        write_csv(csv_file, COLUMNS, rows)
    return rows, wrong
