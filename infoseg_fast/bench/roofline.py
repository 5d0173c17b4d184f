"""Cost model: bytes moved and operations of each op, from the grids and tiles of its launches, and
the bytes that any method must move (floor).

    python -m infoseg_fast.bench.roofline [--json] [--docs FILE] [--op OP ...]

Nothing is measured. Bytes moved are those between the chip and its DRAM: each byte that a launch
reads, once, and each byte that it writes. Repeated loads (counted in `requested`) are assumed to
hit the L2 cache. Times are lower bounds from datasheet rates.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..kernels.launch import Launch, num_bytes
from ..ops import OPS
from ..ops.record import Case
from . import tables
from .launches import cases_for, record


@dataclass(frozen=True)
class Chip:
    """Datasheet rates: bytes per second of the DRAM, and operations per second of dense products by
    dtype.
    """

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
FOLD = "projection"  # op of the rows of the fold, which many ops share
MAX_RATIO = 1.15  # largest ratio of the bytes that the loss moves to its floor


@dataclass(frozen=True)
class Row:
    """One phase of an op: bytes that its launches move and request, and bytes that any method must
    move.
    """

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


def bound_ms(chip: Chip, dtype: torch.dtype, moved: int, operations: int) -> float:
    """Lower bound of the time in ms for this number of bytes and operations on the chip."""
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
        floor=floor(case, phase, launches),
        operations=operations,
        bounds_ms={chip.name: round(bound_ms(chip, case.dtype, moved, operations), 4) for chip in CHIPS},
    )


def floor(case: Case, phase: str, launches: list[Launch]) -> int:
    """Bytes that any method must move. The record of an op has no floor of the fold. It is the
    bytes of the inputs and outputs of the launch.
    """
    if phase in ("forward", "backward"):
        return OPS[case.op].floor(case, phase)
    (started,) = launches
    return num_bytes(*(x for x in started.arguments.values() if isinstance(x, torch.Tensor)))


def rows(cases: list[Case]) -> list[Row]:
    """The phases of the cases. Those of the projection, which many cases share, come once, last."""
    found, folds = [], {}
    for case in cases:
        for phase, launches in record(case).items():
            if phase in ("forward", "backward"):
                found.append(row(case, phase, launches))
            else:
                name = case.name.split(",")[0]
                folds[name, case.C, case.dtype, phase] = replace(row(case, phase, launches), op=FOLD, case=name)
    return [*found, *folds.values()]


def above_floor(found: list[Row]) -> list[str]:
    """The cases of the loss that move more than `MAX_RATIO` times their floor, forward and backward
    together.
    """
    totals: dict[tuple, list[int]] = {}
    for r in found:
        if r.op == "mutual_information_loss":
            total = totals.setdefault((r.case, r.C, r.dtype), [0, 0])
            total[0] += r.moved
            total[1] += r.floor
    return [f"{key} moves {m / f:.3f} times its floor" for key, (m, f) in totals.items() if m > MAX_RATIO * f]


def in_docs(found: list[Row]) -> list[Row]:
    """The rows of docs/gpu_kernels.md: one width of the features, in float32."""
    return [r for r in found if r.dtype == "float32" and r.C not in (128, 512)]


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
    parser.add_argument("--op", nargs="+", default=list(OPS), help="only these ops")
    arguments = parser.parse_args(argv)
    found = rows([case for case in cases_for("roofline") if case.op in arguments.op])
    if arguments.json:
        print(json.dumps([asdict(r) | {"ratio": round(r.ratio, 4)} for r in found], indent=1))
    else:
        print(as_markdown(found))
    if arguments.docs is not None:
        tables.write(arguments.docs, "roofline", as_markdown(in_docs(found)))
    broken = above_floor(found)
    for line in broken:
        print(line, file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
