"""Compile the Triton kernels ahead of time, without a GPU, and check the machine code.

    python -m infoseg_fast.bench.aot [--json] [--docs FILE] [--capability 80 90 100] [--jobs N] [--all] [--only TEXT]

Exits 1 if a kernel breaks a promise. All figures come from the cubin and its disassembly (SASS),
because the resource usage of cuobjdump leaves out spills:

- registers and stack: no spill, which shows as stack and as LDL/STL instructions;
- shared memory: within the limit of a block of that chip;
- tensor cores: HMMA/DMMA (mma), HGMMA (wgmma), UTCHMMA and the like (tcgen05) in kernels with
  matrix products;
- 128-bit global loads (LDG or LDGSTS with .128): at least a third of the bytes of all load
  instructions if the strides allow it;
- features in flight: enough to use the rate of the DRAM (`infoseg_fast.bench.occupancy`), in
  kernels that memory limits at the paper's shapes.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import triton

from ..ops.record import Case
from . import tables
from .launches import cases_for, record
from .occupancy import MULTIPROCESSORS, features_under_way, resident_programs
from .specialisation import Specialisation

CAPABILITIES = (80, 90, 100)
SHARED_MEMORY = {capability: chip.max_shared for capability, chip in MULTIPROCESSORS.items()}  # bytes of a program
TENSOR_CORE = re.compile(r"\b(HMMA|DMMA|IMMA|HGMMA|UTC[A-Z]*MMA)\b")
GLOBAL_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\b([.\w]*)")
WIDTHS = {".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}  # bytes; 4 without a suffix
MIN_WIDE_SHARE = 1 / 3  # of the bytes that load instructions load
LOCAL = re.compile(r"\b(LDL|STL)\b")


@dataclass(frozen=True)
class Report:
    """The figures of one cubin."""

    kernel: str
    variant: str
    dtype: str
    capability: int
    registers: int  # per thread
    stack: int  # bytes
    local: int  # number of LDL and STL instructions
    shared: int  # bytes of shared memory of a program
    products: dict[str, int]  # number of tensor-core instructions by name
    wide_loads: int  # number of 128-bit global load instructions
    wide_share: float  # their share of the bytes of all global load instructions, each counted once
    resident: int  # programs per multiprocessor
    in_flight: int  # bytes of features that these programs load ahead
    faults: list[str]


def tool(name: str) -> str:
    """The path of a CUDA tool that Triton ships."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def read_cubin(cubin: bytes) -> tuple[int, int, str]:
    """Registers, stack bytes and SASS of the single kernel of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump prints no resource usage: {usage!r}")
    return int(found[1]), int(found[2]), sass


def load_widths(sass: str) -> list[int]:
    """Bytes per thread of every global load instruction."""
    suffixes = GLOBAL_LOAD.findall(sass)
    return [next((width for name, width in WIDTHS.items() if name in suffix), 4) for suffix in suffixes]


def faults(found: Report, specialisation: Specialisation) -> list[str]:
    """One line for each promise that the machine code breaks."""
    broken = []
    if found.stack or found.local:
        broken.append(f"spills: {found.stack} bytes of stack, {found.local} local loads and stores")
    if found.shared > SHARED_MEMORY[found.capability]:
        broken.append(f"needs {found.shared} bytes of shared memory of {SHARED_MEMORY[found.capability]}")
    if specialisation.kernel.products and not found.products:
        broken.append("no tensor-core instruction")
    expected = specialisation.kernel.wide_loads and specialisation.allows_wide_loads
    if expected and found.wide_share < MIN_WIDE_SHARE:
        broken.append(f"{found.wide_loads} 128-bit global loads, {found.wide_share:.0%} of the bytes loaded")
    needed = MULTIPROCESSORS[found.capability].in_flight
    if needed is not None and found.in_flight < needed and specialisation.limited_by_memory:
        broken.append(f"{found.in_flight >> 10} KB of features in flight of {needed >> 10}")
    return broken


def report(specialisation: Specialisation, capability: int) -> Report:
    compiled = specialisation.compile(capability)
    registers, stack, sass = read_cubin(compiled.asm["cubin"])
    widths = load_widths(sass)
    wide = widths.count(16)
    num_warps = int(dict(specialisation.options)["num_warps"])
    resident = resident_programs(capability, registers, compiled.metadata.shared, num_warps)
    found = Report(
        kernel=specialisation.name,
        variant=specialisation.described(),
        dtype=specialisation.dtype,
        capability=capability,
        registers=registers,
        stack=stack,
        local=len(LOCAL.findall(sass)),
        shared=compiled.metadata.shared,
        products=dict(Counter(TENSOR_CORE.findall(sass))),
        wide_loads=wide,
        wide_share=round(16 * wide / max(sum(widths), 1), 3),
        resident=resident,
        in_flight=resident * features_under_way(specialisation, compiled.metadata.shared, "LDGSTS" in sass),
        faults=[],
    )
    return replace(found, faults=faults(found, specialisation))


def specialisations(cases: list[Case]) -> list[Specialisation]:
    """The distinct specialisations of all launches of the cases."""
    launches = (started for case in cases for phase in record(case).values() for started in phase)
    return list(dict.fromkeys(map(Specialisation.of, launches)))


@functools.cache
def _specialisations(uses: tuple[str, ...]) -> list[Specialisation]:
    return specialisations(cases_for(*uses))


def _report_at(place: tuple[tuple[str, ...], int, int]) -> Report:
    """A report, made in a worker. JIT functions cannot be pickled, so each worker makes its own
    list of specialisations.
    """
    uses, index, capability = place
    return report(_specialisations(uses)[index], capability)


def reports(
    uses: tuple[str, ...],
    capabilities: Sequence[int],
    jobs: int,
    only: str = "",
    chosen: Callable[[Specialisation, int], bool] = lambda specialisation, capability: True,
) -> list[Report]:
    """Reports of the specialisations of `uses` whose description contains `only`, for each
    capability for which `chosen` is true, made by `jobs` processes.
    """
    named = [(index, s) for index, s in enumerate(_specialisations(uses)) if only in s.described()]
    places = [(uses, index, capability) for index, s in named for capability in capabilities if chosen(s, capability)]
    if jobs == 1:
        return [_report_at(place) for place in places]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(pool.map(_report_at, places))


def as_markdown(found: list[Report]) -> str:
    """A table with one line per variant and the figures of all capabilities side by side."""
    capabilities = sorted({r.capability for r in found})
    names = " / ".join(f"sm_{capability}" for capability in capabilities)
    lines = [
        f"Registers, shared memory and tensor-core instructions of {names}.",
        "",
        "| kernel | variant | registers | shared, KB | tensor cores | 128-bit share of loads | spills |",
        "|---|---|---|---|---|---|---|",
    ]
    variants = dict.fromkeys((r.kernel, r.variant) for r in found)
    for kernel, variant in variants:
        # Specialisations that differ only in the dtype of their output share a line.
        same = sorted((r for r in found if r.variant == variant), key=lambda r: (r.capability, r.registers))
        of = {r.capability: r for r in same}.values()
        spills = sum(r.local for r in of)
        cells = (
            kernel,
            variant.removeprefix(kernel).strip(),
            " / ".join(str(r.registers) for r in of),
            " / ".join(f"{r.shared / 1024:.0f}" for r in of),
            " / ".join("+".join(sorted(r.products)) or "none" for r in of),
            f"{min(r.wide_share for r in of):.0%}",
            f"{spills} instructions" if spills else "none",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infoseg_fast.bench.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output and nothing else")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table into FILE (docs/gpu_kernels.md)")
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES), choices=sorted(SHARED_MEMORY))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--all", action="store_true", help="many more shapes; a quarter of an hour on two cores")
    parser.add_argument(
        "--only", default="", help="only specialisations whose description contains TEXT", metavar="TEXT"
    )
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("nothing is compiled with TRITON_INTERPRET=1; unset it")
    uses = ("aot", "aot_more", *(["aot_all"] if arguments.all else []))
    found = reports(uses, arguments.capability, arguments.jobs, arguments.only)
    if not found:
        parser.error(f"--only {arguments.only}: no specialisation has this text in its description")
    if arguments.json:
        print(json.dumps([asdict(r) for r in found], indent=1))
    else:
        print(as_markdown(found))
    broken = [r for r in found if r.faults]
    for r in broken:
        print(f"sm_{r.capability} {r.variant}: {'; '.join(r.faults)}", file=sys.stderr)
    if arguments.docs is not None:
        documented = {s.described() for s in _specialisations(("aot",))}
        tables.write(arguments.docs, "aot", as_markdown([r for r in found if r.variant in documented]))
    if not arguments.json:
        print(f"{len(found)} compilations, {len(broken)} with a fault")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
