"""What each op moves and computes, from its launches' grids and tiles, against the floor of the method.

    python -m infoseg_fast.bench.roofline [--json] [--docs FILE] [--op OP ...]

Nothing is measured here. Bytes moved are those between the chip and its DRAM: each byte that a launch reads, once, and
each that it writes; what is asked for again (`requested` counts it) is taken to come from the L2 cache, where all of it
fits. Times are bounds from datasheet rates: no run can be faster, and how much slower it is only a GPU can tell.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..kernels.launch import Launch
from ..reference import accumulation_dtype
from . import tables
from .launch_cases import ROOFLINE_CASES, Case, products_of, record


@dataclass(frozen=True)
class Chip:
    """Datasheet rates: bytes a second of DRAM, and operations a second of dense products by dtype."""

    name: str
    bytes: float
    operations: dict[torch.dtype, float]


def _chip(name: str, terabytes: float, tf32: float, half: float, double: float) -> Chip:
    rates = {torch.float32: tf32, torch.bfloat16: half, torch.float16: half, torch.float64: double}
    return Chip(name, terabytes * 1e12, {dtype: rate * 1e12 for dtype, rate in rates.items()})


CHIPS = (
    _chip("A100 SXM 80 GB", 2.039, 156, 312, 19.5),
    _chip("H100 SXM", 3.35, 494.5, 989.5, 67),
    _chip("B200", 8.0, 1100, 2250, 37),
)
MOST = 1.15  # what the loss with one negative may move, in parts of its floor


@dataclass(frozen=True)
class Row:
    """An op's phase. Bytes as the launches move them, as they ask for them, and as the method must move them."""

    op: str
    case: str
    C: int
    dtype: str
    phase: str
    launches: int
    moved: int
    requested: int
    floor: int
    operations: int
    bounds_ms: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.moved / self.floor


def floor(case: Case, phase: str) -> int:
    """Bytes of the maps that must be read or written once: METHOD's 3 B C P of the loss, and likewise for the others.

    The global features and their gradient, K numbers for P of a map, are left out, as they are there.
    """
    feature_map = case.B * case.C * case.h * case.w * case.dtype.itemsize
    score_map = case.B * case.K * case.h * case.w * case.dtype.itemsize
    rows, columns = case.settings.get("size", (case.h, case.w))
    labels = case.B * rows * columns
    sums = accumulation_dtype(case.dtype).itemsize
    statistics = case.B * case.settings.get("statistics", 21) * case.h * case.w * sums
    products = products_of(case.C) * sums  # of one position or class
    forward = {
        "mutual_information_loss": feature_map,
        "local_global_similarity": feature_map + score_map,
        "assign": feature_map + score_map,
        "class_moments": feature_map + statistics,
        "segment": feature_map + labels,
        "segment_and_count": feature_map + labels,  # the target, read
        "local_appearance": feature_map + (case.C + 2) * labels * case.dtype.itemsize,
        "appearance_statistics": feature_map + case.B * case.h * case.w * products,
        "information_of_moments": (2 * case.K + 1) * products,  # with the gradient, and the moments of all positions
        "refined_labels": feature_map + score_map + case.C * labels * case.dtype.itemsize + labels,
        "refined_probs": feature_map + 2 * score_map + case.C * labels * case.dtype.itemsize,
    }
    backward = {
        "mutual_information_loss": 2 * feature_map,
        "local_global_similarity": 2 * feature_map + score_map,
        "assign": 2 * feature_map + 2 * score_map,
        "class_moments": 2 * feature_map + statistics,
    }
    return {"forward": forward, "backward": backward}[phase][case.op]


def bound_ms(chip: Chip, dtype: torch.dtype, moved: int, operations: int) -> float:
    """No launch that moves and computes this can take less on the chip."""
    return 1e3 * max(moved / chip.bytes, operations / chip.operations[dtype])


def row(case: Case, phase: str, launches: list[Launch]) -> Row:
    costs = [started.kernel.cost(started) for started in launches]
    moved, operations = sum(c.moved for c in costs), sum(c.operations for c in costs)
    return Row(
        op=case.op,
        case=case.name,
        C=case.C,
        dtype=str(case.dtype).removeprefix("torch."),
        phase=phase,
        launches=len(launches),
        moved=moved,
        requested=sum(c.loads + c.stores for c in costs),
        floor=floor(case, phase),
        operations=operations,
        bounds_ms={chip.name: round(bound_ms(chip, case.dtype, moved, operations), 4) for chip in CHIPS},
    )


def rows(cases: list[Case]) -> list[Row]:
    return [row(case, phase, launches) for case in cases for phase, launches in record(case).items()]


def too_much(found: list[Row]) -> list[str]:
    """The loss's cases that move more than `MOST` times their floor, forward and backward together."""
    totals: dict[tuple, list[int]] = {}
    for r in found:
        if r.op == "mutual_information_loss":
            total = totals.setdefault((r.case, r.C, r.dtype), [0, 0])
            total[0] += r.moved
            total[1] += r.floor
    return [f"{key} moves {m / f:.3f} times its floor" for key, (m, f) in totals.items() if m > MOST * f]


def in_docs(found: list[Row]) -> list[Row]:
    return [r for r in found if r.dtype == "float32"]


def as_markdown(found: list[Row]) -> str:
    names = [chip.name for chip in CHIPS]
    lines = [
        "| op | shape | C | dtype | phase | launches | moved, MB | floor, MB | ratio | requested, MB | GFLOP |"
        + "".join(f" bound {name}, ms |" for name in names),
        "|" + "---|" * (11 + len(names)),
    ]
    for r in found:
        cells = [r.op, r.case, r.C, r.dtype, r.phase, r.launches, f"{r.moved / 1e6:.1f}", f"{r.floor / 1e6:.1f}"]
        cells += [f"{r.ratio:.3f}", f"{r.requested / 1e6:.1f}", f"{r.operations / 1e9:.2f}"]
        cells += [f"{r.bounds_ms[name]:.4f}" for name in names]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infoseg_fast.bench.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output and nothing else")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table into FILE (docs/gpu_kernels.md)")
    parser.add_argument("--op", nargs="+", default=sorted({case.op for case in ROOFLINE_CASES}), help="these ops only")
    arguments = parser.parse_args(argv)
    found = rows([case for case in ROOFLINE_CASES if case.op in arguments.op])
    if arguments.json:
        print(json.dumps([asdict(r) | {"ratio": round(r.ratio, 4)} for r in found], indent=1))
    else:
        print(as_markdown(found))
    if arguments.docs is not None:
        tables.write(arguments.docs, "roofline", as_markdown(in_docs(found)))
    broken = too_much(found)
    for line in broken:
        print(line, file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
