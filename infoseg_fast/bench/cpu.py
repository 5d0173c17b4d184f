"""`infoseg bench` on a CPU: the ops beside the best PyTorch of the same algebra, with error, peak memory and the floor.

All providers of a case are timed in turn in one process, and medians are compared. The floor is the larger of the bytes
that must move at the measured rate of a copy and the operations at the measured rate of a large matrix product.
"""

import csv
import ctypes
import gc
import math
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import ops
from ..env import commit
from ..ops.refined_labels import refined_labels as pixel_labels
from ..ops.refined_probs import refined_probs
from ..reference import accumulation_dtype
from . import baselines


@dataclass(frozen=True)
class Case:
    """One row of the table: an op at a shape, and how many times faster than the best PyTorch it should be."""

    op: str  # "loss", "assign", "moments", "segment", "refine" or "pool"
    name: str
    B: int = 16
    C: int = 128
    D: int = 512
    K: int = 15
    side: int = 32
    dtype: torch.dtype = torch.float32
    settings: dict = field(default_factory=dict)
    masked: bool = False
    spread: float = 0.3  # of the global features: 1 makes confident assignments, whose small probabilities are denormal
    wanted: float = 1.8

    @property
    def partners(self) -> int:
        n = self.settings.get("num_negatives", 1)
        return self.B - 1 if n == "all" else n

    @property
    def differentiated(self) -> bool:
        return self.op in ("loss", "moments")

    def operations(self) -> int:
        """Of the products that read the features; the method's count. Of moments those with the statistics too."""
        each = 2 * self.B * self.side**2 * self.C
        if self.op == "moments":
            return 3 * each * self.K + 2 * 2 * self.B * self.side**2 * self.K * self.settings["statistics"]
        if self.op in ("refine", "pool"):  # c residuals of 2c numbers, and their squares, of every pixel and class
            return 2 * self.B * math.prod(self.settings["size"]) * self.K * self.C * (2 * self.C + 1)
        if self.op != "loss":
            return each * self.K
        scores = (1 + self.partners) * self.K
        negatives = self.settings.get("negatives", "same_position")
        if self.settings.get("estimator", "jsd") == "jsd" and negatives == "same_position":
            scores = min(scores, 2 * self.K + self.partners)  # through the assigned features, METHOD's S'
        return 3 * each * scores

    def moved_bytes(self) -> int:
        if self.op in ("refine", "pool"):  # colours in, and labels out; the maps of positions are little beside
            return self.B * math.prod(self.settings["size"]) * (4 * self.C + (self.op == "refine"))
        statistics = 2 * self.settings["statistics"] if self.op == "moments" else 0
        maps = (3 if self.differentiated else 1) * self.C + statistics
        return maps * self.B * self.side**2 * self.dtype.itemsize


ALL = {"num_negatives": "all"}
CASES = (
    Case("loss", "jsd", wanted=2.0),
    Case("loss", "jsd K=3", K=3),
    Case("loss", "jsd K=27", K=27),
    Case("loss", "jsd C=64", C=64),
    Case("loss", "jsd C=256", C=256),
    Case("loss", "jsd n=3", settings={"num_negatives": 3}),
    Case("loss", "jsd reassigned", settings={"negatives": "reassigned"}),
    Case("loss", "jsd mask", masked=True),
    Case("loss", "jsd confident", spread=1.0),
    Case("loss", "jsd bfloat16", dtype=torch.bfloat16),
    Case("loss", "infonce all", B=32, side=16, settings={"estimator": "infonce"} | ALL, wanted=1.4),
    Case("loss", "jsd all", B=32, side=16, settings=ALL, wanted=1.5),
    Case("assign", "assign", wanted=1.6),
    Case("moments", "class moments", settings={"statistics": 21}),
    Case("segment", "segment to 128x128", C=64, D=256, settings={"size": (128, 128)}, wanted=8.0),
    Case("refine", "refined labels 128x128", C=3, settings={"size": (128, 128)}),
    Case("pool", "refined probs 128x128", C=3, settings={"size": (128, 128)}),
)
RESULTS = ("loss", "features", "global_features", "weight", "bias")  # the loss, and what there are gradients by
COLUMNS = (
    "op", "case", "provider", "mode", "shape", "dtype", "device", "threads", "median_ms", "p20_ms", "p80_ms",
    "ratio_to_op", "floor_ms", "share_of_floor", "error", *(f"error_{name}" for name in RESULTS), "extra_mb", "torch",
    "machine", "commit",
)  # fmt: skip
SHOWN = (
    "case", "provider", "median_ms", "p20_ms", "p80_ms", "ratio_to_op", "floor_ms", "share_of_floor", "error",
    "extra_mb",
)  # fmt: skip


def inputs(case: Case, dtype: torch.dtype | None = None) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    if case.op in ("refine", "pool"):
        return refinement_inputs(case, generator, dtype or case.dtype), None
    shapes = (
        (case.B, case.C, case.side, case.side),
        (case.B, case.K, case.D),
        (case.D, case.C),
        (case.D,),
    )
    scales = (1.0, case.spread, case.C**-0.5, 0.1)
    x = [torch.randn(s, generator=generator).mul_(c).to(case.dtype) for s, c in zip(shapes, scales, strict=True)]
    x = [t.to(dtype or case.dtype).requires_grad_(case.differentiated) for t in x]
    mask = torch.rand(case.B, case.side, case.side, generator=generator) < 0.8 if case.masked else None
    return x, mask


def refinement_inputs(case: Case, generator: torch.Generator, dtype: torch.dtype) -> list[torch.Tensor]:
    """What `pixel_labels` and `refined_probs` take; C is the number of colours."""
    B, c, K, side = case.B, case.C, case.K, case.side
    shapes = (B, K, side, side), (B, c, *case.settings["size"]), (B, c, side, side), (K, c, 2 * c + 1), (K,)
    prior, *others = (torch.randn(s, generator=generator) for s in shapes)
    return [x.to(dtype) for x in (torch.softmax(prior, dim=1), *others)]


def position_statistics(B: int, S: int, h: int, w: int, dtype: torch.dtype) -> torch.Tensor:
    """For features of this dtype."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, S, h, w, generator=generator, dtype=torch.float64).to(accumulation_dtype(dtype))


def providers(case: Case, compiled: bool) -> dict[str, Callable]:
    """Functions of features, global features, weight, bias and mask."""
    settings = case.settings
    if case.op == "moments":
        Y = position_statistics(case.B, settings["statistics"], case.side, case.side, case.dtype)

    def op(*x, mask=None):
        if case.op == "loss":
            return ops.mutual_information_loss(*x, mask=mask, **settings)
        if case.op == "moments":
            return ops.class_moments(*x, statistics=Y)
        if case.op == "refine":
            return pixel_labels(*x)
        if case.op == "pool":
            return refined_probs(*x)
        return ops.assign(*x) if case.op == "assign" else ops.segment(*x, **settings)

    def eager(*x, mask=None):
        if case.op == "loss":
            return baselines.loss(*x, mask=mask, **settings)
        if case.op == "moments":
            return baselines.class_moments(*x, statistics=Y)
        if case.op == "refine":
            return baselines.refined_labels(*x)
        if case.op == "pool":
            return baselines.refined_probs(*x)
        return baselines.assign(*x) if case.op == "assign" else baselines.segment(*x, **settings)

    found = {"infoseg_fast": op, "eager": eager}
    if compiled:
        torch.compiler.reset()  # the cases share this function; without it the compiler gives up after eight of them
        found["compiled"] = torch.compile(eager, dynamic=False)
    if case.name == "jsd":
        found["as written"] = baselines.as_written
    return found


def upstream_of(value: torch.Tensor) -> torch.Tensor:
    """A gradient to start from: 1 of a loss. That of equal numbers by probabilities would be 0."""
    return torch.linspace(1, 2, value.numel(), device=value.device).to(value.dtype).view_as(value)


def step_of(case: Case, provider: Callable, x: list[torch.Tensor], mask: torch.Tensor | None) -> Callable:
    if case.differentiated:

        def step():
            for t in x:
                t.grad = None
            value = provider(*x, mask=mask)
            value.backward(upstream_of(value))
            return [value.detach(), *(t.grad for t in x)]

        return step

    def step():
        with torch.no_grad():
            return [provider(*x)]

    return step


def timed(steps: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each, taken in turn, in a new order each turn: what ran before leaves its own data in the caches.

    With one thread it is the processor's time, which waits for other programs do not count in.
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
    """Operations a millisecond of a large matrix product, and bytes a millisecond of a copy of features; medians."""
    a, b = (torch.randn(1024, 1024) for _ in range(2))
    shape = CASES[0].B, CASES[0].C, CASES[0].side, CASES[0].side
    source, to = (torch.ones(shape) for _ in range(2))
    times = timed({"product": lambda: torch.mm(a, b), "copy": lambda: to.copy_(source)}, 31)
    median = {name: statistics.median(t) for name, t in times.items()}
    return 2 * 1024**3 / median["product"], 2 * source.numel() * 4 / median["copy"]


def relative_errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    """Of the value and of every gradient, or of the one result there is; for labels the share that differs."""
    if not found[0].is_floating_point():
        return [(found[0] != truth[0]).double().mean().item()]
    pairs = zip(found, truth, strict=True)
    return [((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs]


def extra_memory(step: Callable) -> float | None:
    """Peak MB above the inputs while `step` runs, less what it returns; None where it cannot be measured."""
    if not Path("/proc/self/status").exists():
        return None
    kept = step()
    del kept
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    kept = step()
    peak = _status_bytes("VmHWM") - before
    returned = sum(t.numel() * t.element_size() for t in kept)
    return max(peak - returned, 0) / 2**20


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure(case: Case, repeats: int, compiled: bool, rates: tuple[float, float]) -> list[dict]:
    """The rows of one case. What cannot be compiled here is left out."""
    x, mask = inputs(case)
    exact, _ = inputs(case, torch.float64)
    truth = step_of(case, providers(case, False)["eager"], exact, mask)()
    steps = {name: step_of(case, f, x, mask) for name, f in providers(case, compiled).items()}
    if "compiled" in steps:
        try:
            steps["compiled"]()
        except Exception as error:  # the compiler has many ways to fail, none of which is this table's business
            warnings.warn(f"{case.name}: torch.compile failed: {str(error).splitlines()[0]}", stacklevel=2)
            del steps["compiled"]
    memory = {name: extra_memory(step) for name, step in steps.items()}
    errors = {name: relative_errors(step(), truth) for name, step in steps.items()}
    times = timed(steps, repeats)
    own = statistics.median(times["infoseg_fast"])
    floor = max(case.operations() / rates[0], case.moved_bytes() / rates[1])
    rows = []
    for name, t in times.items():
        median, tenths = statistics.median(t), statistics.quantiles(t, n=10)
        rows.append(
            {
                "op": case.op,
                "case": case.name,
                "provider": name,
                "mode": "forward + backward" if case.differentiated else "forward",
                "shape": f"B={case.B} C={case.C} D={case.D} K={case.K} {case.side}x{case.side}",
                "dtype": str(case.dtype).removeprefix("torch."),
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "median_ms": round(median, 3),
                "p20_ms": round(tenths[1], 3),
                "p80_ms": round(tenths[7], 3),
                "ratio_to_op": round(median / own, 2),
                "floor_ms": round(floor, 3),
                "share_of_floor": round(floor / median, 3),
                "error": f"{max(errors[name]):.1e}",
                **{
                    f"error_{result}": f"{error:.1e}"
                    for result, error in zip(RESULTS, errors[name], strict=False)
                    if case.differentiated
                },
                "extra_mb": "" if memory[name] is None else round(memory[name], 2),
                "torch": torch.__version__,
                "machine": platform.machine(),
                "commit": commit() or "",
            }
        )
    return rows


def table(rows: list[dict], shown: Sequence[str] = SHOWN) -> str:
    lines = [list(shown), *([str(row[c]) for c in shown] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def run(names: list[str], repeats: int, compiled: bool, csv_file: Path | None) -> list[dict]:
    chosen = [c for c in CASES if not names or c.op in names or c.name in names]
    rates = machine_rates()
    print(
        f"matrix product {rates[0] / 1e6:.1f} GFLOP/s, copy {rates[1] / 1e6:.1f} GB/s, "
        f"{torch.get_num_threads()} thread(s)"
    )
    rows = []
    for case in chosen:
        found = measure(case, repeats, compiled, rates)
        print(table(found), flush=True)
        rows += found
    if csv_file is not None:
        write_csv(csv_file, COLUMNS, rows)
    return rows


def write_csv(file: Path, columns: Sequence[str], rows: list[dict]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
