"""`infoseg bench --device cuda`: the Triton kernels are checked on the device, then timed, in a few minutes in all.

Each case is timed beside the paper as written (eager), the best PyTorch of the same algebra (eager), and that under
torch.compile, by default and with max-autotune. A time is the median of single calls between CUDA events, the L2 cache
emptied before each; the floor is what the method must move at the rate of a copy measured in the same run.
torch.compile is left out, and said to be, where the time allowed is over.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import ops
from ..env import commit, versions
from ..model import STRIDE
from ..ops.refined_labels import refined_labels as pixel_labels
from ..ops.refined_probs import refined_probs
from ..recipe.appearance import appearance_term
from ..reference import accumulation_dtype
from . import baselines, cuda_checks
from .cpu import SHOWN, position_statistics, relative_errors, table, upstream_of, write_csv

SECONDS = 420  # after which nothing more is compiled
AUTOTUNED = 2  # cases that max-autotune is timed on: it takes the longest
FLUSH_BYTES = 2**28  # more than any L2 cache of today


@dataclass(frozen=True)
class Case:
    """An op at a shape. B = 64 and a stride of 4 are the paper's; C is a width of this package's networks, or how
    many colours labels are refined with.
    """

    op: str  # "loss", "assign", "similarity", "moments", "appearance", "segment", "count", "refine" or "pool"
    name: str
    shape: dict
    dtype: torch.dtype = torch.float32
    settings: dict = field(default_factory=dict)

    @property
    def differentiable(self) -> bool:
        return self.op not in ("segment", "count", "refine", "pool")


COCO = {"B": 64, "C": 256, "D": 512, "K": 15, "h": 32, "w": 32}
POTSDAM = {"B": 64, "C": 256, "D": 512, "K": 6, "h": 50, "w": 50}
INFONCE = {"estimator": "infonce", "num_negatives": "all"}
CASES = (
    Case("loss", "jsd", COCO),
    Case("loss", "jsd bfloat16", COCO, torch.bfloat16),
    Case("loss", "infonce all, balance", COCO, torch.bfloat16, INFONCE | {"balance": 2.0}),
    Case("assign", "assign", COCO),
    Case("segment", "segment to 128x128", COCO, settings={"size": (128, 128)}),
    Case("loss", "jsd Potsdam", POTSDAM),
    Case("loss", "jsd Potsdam bfloat16", POTSDAM, torch.bfloat16),
    Case("loss", "jsd reassigned", COCO, settings={"negatives": "reassigned"}),
    Case("loss", "jsd n=3", COCO, settings={"num_negatives": 3}),
    Case("loss", "jsd all", COCO, torch.bfloat16, {"num_negatives": "all"}),
    Case("loss", "infonce all", COCO, settings=INFONCE),
    Case("assign", "assign bfloat16", COCO, torch.bfloat16),
    Case("similarity", "similarity", COCO),
    Case("moments", "class moments", COCO, settings={"statistics": 21}),
    Case("moments", "class moments bfloat16", COCO, torch.bfloat16, {"statistics": 21}),
    Case("appearance", "appearance term", COCO, settings={"smooth": 1}),
    Case("appearance", "appearance term Potsdam", POTSDAM, settings={"smooth": 0}),
    Case("segment", "segment bfloat16 to 128x128", COCO, torch.bfloat16, {"size": (128, 128)}),
    Case("count", "segment and count 128x128", COCO, settings={"size": (128, 128), "num_classes": 27}),
    Case("refine", "refined labels 128x128", COCO | {"C": 3}, settings={"size": (128, 128)}),
    Case("pool", "refined probs 128x128", COCO | {"C": 3}, settings={"size": (128, 128)}),
)
COLUMNS = (
    "op", "case", "provider", "mode", "shape", "dtype", "device", "median_ms", "p20_ms", "p80_ms", "ratio_to_op",
    "floor_ms", "share_of_floor", "error", "extra_mb", "copy_gb_s", "torch", "triton", "commit",
)  # fmt: skip


def floor_bytes(case: Case, mode: str) -> int:
    """Of the maps that must be read or written once (as kernels.roofline has it)."""
    s, itemsize = case.shape, case.dtype.itemsize
    P = s["h"] * s["w"]
    feature_map, score_map = s["B"] * s["C"] * P * itemsize, s["B"] * s["K"] * P * itemsize
    if case.op == "loss":
        return feature_map * (1 if mode == "forward" else 3)
    if case.op == "moments":
        sums = s["B"] * case.settings["statistics"] * P * accumulation_dtype(case.dtype).itemsize
        return feature_map * (1 if mode == "forward" else 3) + sums * (1 if mode == "forward" else 2)
    if case.op == "appearance":  # the images are read, and nothing else that is not an input
        return 3 * s["B"] * STRIDE**2 * P * 4 + feature_map * (1 if mode == "forward" else 3)
    if case.op in ("refine", "pool"):  # the prior, colours of the positions and of the pixels; labels or probabilities
        pixels = s["B"] * case.settings["size"][0] * case.settings["size"][1]
        if case.op == "pool":
            return 2 * score_map + feature_map + pixels * s["C"] * itemsize
        return score_map + feature_map + pixels * (s["C"] * itemsize + 1)
    if not case.differentiable:  # labels are written, or a target read
        return feature_map + s["B"] * case.settings["size"][0] * case.settings["size"][1]
    if mode == "forward":
        return feature_map + score_map
    return 3 * feature_map + (3 if case.op == "assign" else 2) * score_map


def inputs(case: Case, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """features, global features, weight and bias, or what `pixel_labels` takes."""
    if case.op in ("refine", "pool"):
        return cuda_checks.pixel_labels_inputs(case.shape, case.settings["size"], dtype, device, case.shape["C"])
    return cuda_checks.inputs(case.shape, dtype, device)


def providers(
    case: Case, device: torch.device, compiled: bool = False, autotuned: bool = False, backend: str = "triton"
) -> dict[str, Callable]:
    """Functions of the case's `inputs`."""
    how = case.settings
    op, eager = {
        "loss": (ops.mutual_information_loss, baselines.loss),
        "assign": (ops.assign, baselines.assign),
        "similarity": (ops.local_global_similarity, baselines.similarity),
        "moments": (ops.class_moments, baselines.class_moments),
        "appearance": (appearance_term, baselines.appearance_term),
        "segment": (ops.segment, baselines.segment),
        "count": (ops.segment_and_count, baselines.segment_and_count),
        "refine": (pixel_labels, baselines.refined_labels),
        "pool": (refined_probs, baselines.refined_probs),
    }[case.op]
    if case.op == "moments":
        s = case.shape
        how = {"statistics": position_statistics(s["B"], how["statistics"], s["h"], s["w"], case.dtype).to(device)}
    if case.op == "appearance":
        how = how | {"images": cuda_checks.images(case.shape, device)}
    if case.op in ("refine", "pool"):
        how = {}  # the size is that of the colours
    if case.op == "count":
        # The upsampled size is the target's; it stands third among the arguments.
        how = {name: value for name, value in how.items() if name != "size"}
        generator = torch.Generator().manual_seed(1)
        shape = (case.shape["B"], *case.settings["size"])
        target = torch.randint(0, how["num_classes"], shape, generator=generator).to(device, torch.uint8)
        op, eager = (lambda f, H, *rest, _op=_op, **k: _op(f, H, target, *rest, **k) for _op in (op, eager))
    found = {"infoseg_fast": lambda *x: op(*x, backend=backend, **how)}
    if case.op == "loss" and not how:  # it is written for one partner at the same position
        found["as written"] = baselines.as_written
    found["eager"] = lambda *x: eager(*x, **how)
    if compiled:
        found["compiled"] = torch.compile(found["eager"], dynamic=False)
    if autotuned:
        found["max-autotune"] = torch.compile(found["eager"], dynamic=False, mode="max-autotune-no-cudagraphs")
    return found


def steps(provider: Callable, x: list[torch.Tensor], differentiable: bool) -> dict[str, Callable]:
    def forward():
        with torch.no_grad():
            return [provider(*x)]

    if not differentiable:
        return {"forward": forward}
    upstream = upstream_of(forward()[0])

    def both():
        out = provider(*x)
        return [out.detach(), *torch.autograd.grad(out, x, upstream)]

    return {"forward": forward, "forward + backward": both}


def timed(step: Callable, repeats: int, device: torch.device) -> list[float]:
    """Milliseconds of single calls on the device; work for the host is hidden behind the emptying of the cache."""
    flush = torch.empty(FLUSH_BYTES // 4, device=device)
    for _ in range(3):
        step()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in marks:
        flush.zero_()
        flush.zero_()
        start.record()
        step()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in marks]


def copy_rate(device: torch.device) -> float:
    """Bytes a millisecond, read and written, of a copy of 1 GB."""
    source = torch.ones(2**28, device=device)
    to = torch.empty_like(source)
    return 2 * source.numel() * 4 / statistics.median(timed(lambda: [to.copy_(source)], 15, device))


def extra_memory(step: Callable, device: torch.device) -> float:
    """Peak MB above the inputs while `step` runs, less what it returns."""
    step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = step()
    peak = torch.cuda.max_memory_allocated(device) - before
    return max(peak - sum(t.numel() * t.element_size() for t in kept), 0) / 2**20


def measure(case: Case, device: torch.device, repeats: int, compiled: bool, autotuned: bool, rate: float) -> list[dict]:
    """The rows of one case; a provider that fails is left out with a warning."""
    x = [t.requires_grad_(case.differentiable) for t in inputs(case, case.dtype, device)]
    exact = [t.detach().double().requires_grad_(case.differentiable) for t in x]
    truth = {mode: step() for mode, step in steps(providers(case, device)["eager"], exact, case.differentiable).items()}
    del exact
    s = case.shape
    rows, own = [], {}
    torch.compiler.reset()  # else the compiler gives up after eight cases of one function
    for name, provider in providers(case, device, compiled, autotuned).items():
        try:
            found = steps(provider, x, case.differentiable)
            times = {mode: timed(step, repeats, device) for mode, step in found.items()}
        except Exception as error:  # what PyTorch cannot compile or hold in memory is not this table's business
            if name == "infoseg_fast":
                raise
            warnings.warn(f"{case.name}: {name} failed: {str(error).splitlines()[0]}", stacklevel=2)
            continue
        for mode, step in found.items():
            median, tenths = statistics.median(times[mode]), statistics.quantiles(times[mode], n=10)
            own.setdefault(mode, median)
            floor = floor_bytes(case, mode) / rate
            rows.append({
                "op": case.op,
                "case": case.name,
                "provider": name,
                "mode": mode,
                "shape": f"B={s['B']} C={s['C']} D={s['D']} K={s['K']} {s['h']}x{s['w']}",
                "dtype": str(case.dtype).removeprefix("torch."),
                "device": torch.cuda.get_device_name(device),
                "median_ms": round(median, 4),
                "p20_ms": round(tenths[1], 4),
                "p80_ms": round(tenths[7], 4),
                "ratio_to_op": round(median / own[mode], 2),
                "floor_ms": round(floor, 4),
                "share_of_floor": round(floor / median, 3),
                "error": f"{max(relative_errors(step(), truth[mode])):.1e}",
                "extra_mb": round(extra_memory(step, device), 2),
                "copy_gb_s": round(rate / 1e6, 1),
                "torch": torch.__version__,
                "triton": versions()["triton"],
                "commit": commit() or "",
            })  # fmt: skip
    return rows


def run(
    names: list[str],
    device: torch.device,
    repeats: int,
    compiled: bool,
    csv_file: Path | None,
    seconds: float = SECONDS,
) -> int:
    """Check, time and write; the number of checks that failed. Nothing is timed when one has."""
    start = time.monotonic()
    number, failed = cuda_checks.run(device)
    for line in failed:
        print(f"failed: {line}")
    print(f"{number - len(failed)} of {number} checks passed on {torch.cuda.get_device_name(device)}", flush=True)
    if failed:
        return len(failed)
    rate = copy_rate(device)
    print(f"copy {rate / 1e6:.0f} GB/s, torch {torch.__version__}, triton {versions()['triton']}", flush=True)
    rows, autotuned = [], 0
    for case in CASES:
        if names and case.op not in names and case.name not in names:
            continue
        in_time = compiled and time.monotonic() - start < seconds
        autotune = in_time and autotuned < AUTOTUNED and time.monotonic() - start < seconds / 2
        autotuned += autotune
        found = measure(case, device, repeats, in_time, autotune, rate)
        print(table(found, ("mode", *SHOWN)), flush=True)
        if compiled and not in_time:
            print(f"torch.compile left out: {seconds:.0f} s are over", flush=True)
        rows += found
    if csv_file is not None:
        write_csv(csv_file, COLUMNS, rows)
        print(f"{len(rows)} rows written to {csv_file}")
    return 0
