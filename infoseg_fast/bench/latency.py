"""Which kernels keep enough loads under way: programs per multiprocessor, waves and bytes in flight
at the paper's shapes, from ahead-of-time compilation. Nothing is measured.

    python -m infoseg_fast.bench.latency [--docs FILE] [--all] [--capability 80 90] [--jobs N] [--op OP ...]

Takes the kernels that read features with one negative per image. Exits 1 where a kernel spills,
keeps less in flight than its chip needs (`infoseg_fast.bench.occupancy`), or fills less than one
wave although the shape has more tiles.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.launch import Launch
from ..ops.record import Case
from . import tables
from .aot import Report, reports
from .launches import cases_for, record
from .occupancy import FULL_WAVE, MULTIPROCESSORS, waves
from .specialisation import Specialisation

CAPABILITIES = (80, 90)
OPS = ("mutual_information_loss", "class_moments", "assign")


@dataclass(frozen=True)
class Row:
    """One launch at one shape, with the figures of its machine code."""

    case: Case
    launch: Launch
    report: Report

    @property
    def waves(self) -> float:
        return waves(self.report.capability, self.launch.programs, self.report.resident)

    @property
    def faults(self) -> list[str]:
        found = list(self.report.faults)
        if self.waves < FULL_WAVE and self.launch.programs < most_programs(self.launch):
            found.append(f"{self.launch.programs} programs are {self.waves:.2f} waves")
        return found


def most_programs(started: Launch) -> int:
    """The number of programs if each had one tile of positions."""
    splits = started.arguments.get("splits", 1)
    tiles = -(-int(started.arguments["P"]) // int(started.constexprs["BLOCK_P"]))
    return started.programs // splits * tiles if "splits" in started.arguments else started.programs


def cases(ops: tuple[str, ...] = OPS, every: bool = False) -> list[Case]:
    """The cases of the ops: those of the table in the documentation, or every one."""

    def wanted(case: Case) -> bool:
        usual = case.settings.get("negatives", "same_position") == "same_position" and "estimator" not in case.settings
        wide = case.C == 256 or "Potsdam" not in case.name
        return case.op in ops and case.dtype in (torch.float32, torch.bfloat16) and (every or (usual and wide))

    return [case for case in cases_for("roofline") if wanted(case)]


def rows(chosen: list[Case], capabilities: list[int], jobs: int) -> list[Row]:
    """The launches of the cases that read features, for each capability."""
    launches = [
        (case, started)
        for case in chosen
        for phase in record(case).values()
        for started in phase
        if started.kernel.feature_loop is not None
    ]
    specialisations = {Specialisation.of(started) for _, started in launches}
    read: Callable[[Specialisation], bool] = specialisations.__contains__
    found = {(r.variant, r.capability): r for r in reports(("roofline",), capabilities, jobs, chosen=read)}
    return [
        Row(case, started, found[Specialisation.of(started).described(), capability])
        for case, started in launches
        for capability in capabilities
    ]


def as_markdown(found: list[Row]) -> str:
    capabilities = sorted({r.report.capability for r in found})
    chips = " / ".join(MULTIPROCESSORS[capability].chip for capability in capabilities)
    lines = [
        f"Figures of {chips}. B = 64.",
        "",
        "| kernel | shape | C | dtype | warps, stages | programs | registers | shared, KB | per multiprocessor | waves "
        "| in flight, KB | spills |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for first in range(0, len(found), len(capabilities)):
        same = found[first : first + len(capabilities)]
        case, started = same[0].case, same[0].launch
        cells = (
            started.kernel.name,
            case.name.split(",")[0],
            case.C,
            str(case.dtype).removeprefix("torch."),
            f"{started.config.num_warps}, {started.config.num_stages}",
            started.programs,
            *(" / ".join(texts) for texts in zip(*map(_figures, same), strict=True)),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _figures(row: Row) -> tuple[str, ...]:
    r = row.report
    figures = r.registers, round(r.shared / 1024), r.resident, f"{row.waves:.2f}", round(r.in_flight / 1024), r.local
    return tuple(map(str, figures))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infoseg_fast.bench.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table into FILE (docs/gpu_kernels.md)")
    parser.add_argument("--all", action="store_true", help="every width of Potsdam's features and every kind of loss")
    parser.add_argument(
        "--capability", type=int, nargs="+", default=list(CAPABILITIES), choices=sorted(MULTIPROCESSORS)
    )
    parser.add_argument("--op", nargs="+", default=list(OPS), choices=OPS, help="only these ops")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    arguments = parser.parse_args(argv)
    found = rows(cases(tuple(arguments.op), arguments.all), arguments.capability, arguments.jobs)
    print(as_markdown(found))
    if arguments.docs is not None:
        tables.write(arguments.docs, "latency", as_markdown(found))
    broken = [r for r in found if r.faults]
    for r in broken:
        print(f"sm_{r.report.capability} {r.report.variant}: {'; '.join(r.faults)}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
