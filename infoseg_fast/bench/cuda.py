"""`infoseg bench --device cuda`: check the Triton kernels on the device, then time them.

The providers of a case are the op, the best PyTorch of the same algebra (eager), the latter under
torch.compile, and for the loss the paper as written (eager). A time is the median of single calls
between CUDA events, with the L2 cache emptied before each. The floor is the time of the bytes that
the method must move, at the rate of a copy that is measured in the same run. After a time limit
torch.compile is left out, and a line says so.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..env import versions
from ..ops import OPS
from ..ops.record import Case
from . import cuda_checks, providers
from .providers import INSTALLED, MEASURED, SHOWN, Step
from .tables import aligned, write_csv

MAX_COMPILE_SECONDS = 420  # time after which torch.compile is left out
AUTOTUNED_CASES = 2  # number of first cases with max-autotune, which takes longest
FLUSH_BYTES = 2**28  # larger than any L2 cache
COLUMNS = (*MEASURED, "device", "copy_gb_s", *INSTALLED)


def timed(step: Step, repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of single calls on the device, each with an empty L2 cache."""
    for _ in range(3):
        step()
    return _between_events(step, repeats, device)


def _between_events(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of single calls. Emptying the cache hides the work of the host."""
    flush = torch.empty(FLUSH_BYTES // 4, device=device)
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in marks:
        flush.zero_()
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in marks]


def replayed(step: Step, repeats: int, device: torch.device) -> list[float]:
    """Microseconds of replays of the CUDA graph of a step, each with an empty L2 cache: the time on
    the device alone.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return [1e3 * milliseconds for milliseconds in _between_events(graph.replay, repeats, device)]


def with_host(step: Step, calls: int) -> float:
    """Microseconds of a call in a loop: the work of the host or of the device, whichever takes
    longer.
    """
    step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start) / calls


def copy_rate(device: torch.device) -> float:
    """Bytes per ms, read and written, of a copy of 1 GiB."""
    source = torch.ones(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / statistics.median(timed(lambda: [target.copy_(source)], 15, device))


def extra_memory(step: Step, device: torch.device) -> float:
    """Peak MB above the inputs while `step` runs, without its results."""
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = step()
    peak = torch.cuda.max_memory_allocated(device) - before
    return max(peak - sum(x.nbytes for x in kept), 0) / 2**20


def measure(case: Case, device: torch.device, repeats: int, rate: float, **choice: bool) -> list[dict]:
    """The rows of one case, with the columns `COLUMNS`. `rate` is the `copy_rate`. `choice` are
    keywords of `providers.providers`.
    """
    rows = providers.measure(
        case,
        device,
        lambda steps: {key: timed(step, repeats, device) for key, step in steps.items()},
        lambda step: extra_memory(step, device),
        lambda case, mode: sum(OPS[case.op].floor(case, phase) for phase in mode.split(" + ")) / rate,
        backend="triton",
        **choice,
    )
    common = {"device": torch.cuda.get_device_name(device), "copy_gb_s": round(rate / 1e6, 1)}
    return [row | common | providers.installed() for row in rows]


def run(
    names: list[str],
    device: torch.device,
    repeats: int,
    compiled: bool,
    csv_file: Path | None,
    max_compile_seconds: float = MAX_COMPILE_SECONDS,
) -> int:
    """Check the kernels, time the cases of these names, print a table of each, and write all rows
    to `csv_file`.

    Returns:
        The number of failed checks. Nothing is timed if a check failed.
    """
    start = time.monotonic()
    number, failed = cuda_checks.run(device)
    for line in failed:
        print(f"failed: {line}")
    print(f"{number - len(failed)} of {number} checks passed on {torch.cuda.get_device_name(device)}", flush=True)
    if failed:
        return len(failed)
    rate = copy_rate(device)
    print(f"copy {rate / 1e6:.0f} GB/s, torch {torch.__version__}, triton {versions()['triton']}", flush=True)
    rows = []
    for i, case in enumerate(providers.chosen_cases("cuda", names)):
        seconds = time.monotonic() - start
        compile_now = compiled and seconds < max_compile_seconds
        autotune = compile_now and i < AUTOTUNED_CASES and seconds < max_compile_seconds / 2
        found = measure(case, device, repeats, rate, compiled=compile_now, autotuned=autotune)
        print(aligned(found, SHOWN), flush=True)
        if compiled and not compile_now:
            print(f"torch.compile left out: the limit of {max_compile_seconds:.0f} s is over", flush=True)
        rows += found
    if csv_file is not None:
        write_csv(csv_file, COLUMNS, rows)
        print(f"{len(rows)} rows written to {csv_file}")
    return 0
