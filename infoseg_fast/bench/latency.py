"""Latency of the kernels that read features: programs per multiprocessor, waves and bytes in flight
at the paper's shapes, from ahead-of-time compilation. Nothing is measured.

    python -m infoseg_fast.bench.latency [--docs FILE] [--all | --next] [--capability 80 90] [--jobs N] [--op OP ...]

Exits 1 if a kernel spills, keeps fewer bytes in flight than its chip needs
(`infoseg_fast.bench.occupancy`), or fills less than one wave although the shape has more tiles.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from ..kernels import configs
from ..kernels.launch import Launch
from ..ops.record import Case
from . import tables
from .aot import Report, report, reports
from .launches import cases_for, record
from .occupancy import FULL_WAVE, MULTIPROCESSORS, waves
from .specialisation import Specialisation

CAPABILITIES = (80, 90)
OPS = ("mutual_information_loss", "class_moments", "assign")
IN_DOCS = OPS[:2]  # the ops of a training step


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
    if "splits" not in started.arguments:
        return started.programs
    tiles = -(-int(started.arguments["P"]) // int(started.constexprs["BLOCK_P"]))
    return started.programs // started.arguments["splits"] * tiles


def cases(ops: tuple[str, ...] = IN_DOCS, every: bool = False) -> list[Case]:
    """The cases of the ops in the table of the documentation, or with `every` all cases."""

    def wanted(case: Case) -> bool:
        usual = case.settings.get("negatives", "same_position") == "same_position" and "estimator" not in case.settings
        return case.op in ops and case.dtype in (torch.float32, torch.bfloat16) and (every or usual)

    return [case for case in cases_for("roofline") if wanted(case)]


def launches(chosen: list[Case]) -> list[tuple[Case, Launch]]:
    """The launches of the cases that read features. The launches of the projection are equal for all
    ops and come once.
    """
    found = {}
    for case in chosen:
        for phase in record(case).values():
            for started in phase:
                if started.kernel.feature_loop is not None:
                    op = "" if started.kernel.name.startswith("projection") else case.op + case.name
                    found.setdefault((op, described(case, started)), (case, started))
    return list(found.values())


def rows(chosen: list[Case], capabilities: list[int], jobs: int) -> list[Row]:
    """The compiled launches of the cases, for each capability."""
    started = launches(chosen)
    specialisations = {Specialisation.of(launch) for _, launch in started}
    made = reports(("roofline",), capabilities, jobs, chosen=lambda s, capability: s in specialisations)
    found = {(r.variant, r.capability): r for r in made}
    return [
        Row(case, launch, found[Specialisation.of(launch).described(), capability])
        for case, launch in started
        for capability in capabilities
    ]


def as_markdown(found: list[Row]) -> str:
    capabilities = sorted({r.report.capability for r in found})
    chips = " / ".join(MULTIPROCESSORS[capability].chip for capability in capabilities)
    lines = [
        f"Figures of {chips}. B = 64.",
        "",
        "| kernel | shape | C | dtype | warps | stages | programs | registers | shared, KB | per multiprocessor "
        "| waves | in flight, KB | spills |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for first in range(0, len(found), len(capabilities)):
        same = found[first : first + len(capabilities)]
        figures = (" / ".join(texts) for texts in zip(*map(_figures, same), strict=True))
        lines.append(described(same[0].case, same[0].launch) + " | ".join(figures) + " |")
    return "\n".join(lines)


def described(case: Case, started: Launch) -> str:
    """The cells of a line of the table that need no compilation."""
    cells = (
        started.kernel.name,
        case.name.split(",")[0],
        case.C,
        str(case.dtype).removeprefix("torch."),
        started.config.num_warps,
        started.config.num_stages,
        started.programs,
    )
    return "| " + " | ".join(map(str, cells)) + " | "


def _figures(row: Row) -> tuple[str, ...]:
    r = row.report
    figures = r.registers, round(r.shared / 1024), r.resident, f"{row.waves:.2f}", round(r.in_flight / 1024), r.local
    return tuple(map(str, figures))


@contextlib.contextmanager
def next_tiles() -> Iterator[None]:
    """A context in which kernels take the second fitting row of the tile table, if there are two."""
    fitting = configs.rows
    with patch.object(configs, "rows", lambda kernel, key: fitting(kernel, key)[1:] or fitting(kernel, key)):
        yield


def compared(chosen: list[Case], capability: int) -> str:
    """A table of the chosen tiles and the next fitting ones, for one chip."""

    def here() -> list[Row]:
        return [Row(case, x, report(Specialisation.of(x), capability)) for case, x in launches(chosen)]

    with next_tiles():
        second = here()
    lines = [
        f"Figures of {MULTIPROCESSORS[capability].chip}: tiles of the next row / tiles of the chosen row.",
        "",
        "| kernel | shape | C | dtype | warps | stages | programs | per multiprocessor | waves | in flight, KB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for before, after in zip(second, here(), strict=True):
        cells = [after.launch.kernel.name, after.case.name.split(",")[0], after.case.C, str(after.case.dtype)[6:]]
        both = [
            (r.launch.config.num_warps, r.launch.config.num_stages, r.launch.programs, *_figures(r)[2:5])
            for r in (before, after)
        ]
        cells += [f"{one} / {other}" for one, other in zip(*both, strict=True)]
        if both[0] != both[1]:
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infoseg_fast.bench.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table into FILE (docs/gpu_kernels.md)")
    parser.add_argument("--all", action="store_true", help="every kind of loss")
    parser.add_argument(
        "--capability", type=int, nargs="+", default=list(CAPABILITIES), choices=sorted(MULTIPROCESSORS)
    )
    parser.add_argument("--op", nargs="+", default=list(IN_DOCS), choices=OPS, help="the ops")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--next", action="store_true", help="compare with the next tiles that fit, at C = 256")
    arguments = parser.parse_args(argv)
    if arguments.next:
        wide = [case for case in cases(tuple(arguments.op)) if case.C == 256 and "COCO" in case.name]
        table = compared(wide, arguments.capability[-1])
        print(table)
        if arguments.docs is not None:
            tables.write(arguments.docs, "tiles", table)
        return 0
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
