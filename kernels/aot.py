"""Ahead-of-time compilation of every kernel for GPUs that need not be there, and what its machine code must hold.

    python -m infoseg_fast.kernels.aot [--json] [--markdown] [--capability 80 90 100] [--jobs N] [--only TEXT]

Exits 1 when a kernel breaks a promise. All figures are read from the cubin and its disassembly (SASS), since the resource
usage that cuobjdump prints leaves out spills:

- registers and stack: a spill shows as stack and as LDL/STL instructions, and none is allowed;
- shared memory: what a launch asks for, within what a block of that chip may have;
- tensor cores: HMMA/DMMA (mma), WGMMA as HGMMA, tcgen05 as UTCHMMA and its relatives, where the kernel multiplies;
- 128-bit global loads: LDG with .128, or LDGSTS with .128 for loads that go to shared memory at once.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import triton

from .specialisation import Specialisation

CAPABILITIES = (80, 90, 100)
# Bytes of shared memory that one block may have (CUDA programming guide, table of compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_CORE = re.compile(r"\b(HMMA|DMMA|IMMA|HGMMA|UTC[A-Z]*MMA)\b")
WIDE_LOAD = re.compile(r"\b(LDG|LDGSTS)\b[.\w]*\.128\b")
LOCAL = re.compile(r"\b(LDL|STL)\b")


@dataclass(frozen=True)
class Report:
    """What one cubin holds."""

    kernel: str
    variant: str
    dtype: str
    capability: int
    registers: int
    stack: int
    local: int  # LDL and STL instructions
    shared: int
    products: dict[str, int]  # tensor-core instructions by name
    wide_loads: int
    faults: list[str]


def tool(name: str) -> str:
    """The path of one of the CUDA tools that Triton ships."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def read_cubin(cubin: bytes) -> tuple[int, int, str]:
    """Registers and stack bytes of its one kernel, and its SASS."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump tells no resource usage: {usage!r}")
    return int(found[1]), int(found[2]), sass


def faults(specialisation: Specialisation, capability: int, stack: int, local: int, shared: int, products: Counter,
           wide_loads: int) -> list[str]:  # fmt: skip
    """The promises that this machine code breaks."""
    found = []
    if stack or local:
        found.append(f"spills: {stack} bytes of stack, {local} local loads and stores")
    if shared > SHARED_MEMORY[capability]:
        found.append(f"needs {shared} bytes of shared memory of {SHARED_MEMORY[capability]}")
    if specialisation.kernel.products and not products:
        found.append("no tensor-core instruction")
    if specialisation.kernel.wide_loads and not wide_loads:
        found.append("no 128-bit global load")
    return found


def report(specialisation: Specialisation, capability: int) -> Report:
    compiled = specialisation.compile(capability)
    registers, stack, sass = read_cubin(compiled.asm["cubin"])
    products = Counter(TENSOR_CORE.findall(sass))
    local, wide_loads, shared = len(LOCAL.findall(sass)), len(WIDE_LOAD.findall(sass)), compiled.metadata.shared
    return Report(
        specialisation.name,
        specialisation.described(),
        specialisation.dtype,
        capability,
        registers,
        stack,
        local,
        shared,
        dict(products),
        wide_loads,
        faults(specialisation, capability, stack, local, shared, products, wide_loads),
    )


def specialisations() -> list[Specialisation]:
    """Of every launch of every case, each once."""
    from .cases import AOT_CASES, record

    found: dict[Specialisation, None] = {}
    for case in AOT_CASES:
        for launches in record(case).values():
            found.update(dict.fromkeys(map(Specialisation.of, launches)))
    return list(found)


def _report_at(place: tuple[int, int]) -> Report:
    """In a worker: JIT functions do not travel between processes, so each makes the list for itself."""
    global _made
    if _made is None:
        _made = specialisations()
    return report(_made[place[0]], place[1])


_made: list[Specialisation] | None = None


def reports(chosen: list[int], capabilities: list[int], jobs: int) -> list[Report]:
    """Of the specialisations at these places of `specialisations()`, for every capability, over `jobs` processes."""
    places = [(place, capability) for place in chosen for capability in capabilities]
    if jobs == 1:
        return [_report_at(place) for place in places]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(pool.map(_report_at, places))


def as_markdown(found: list[Report]) -> str:
    lines = [
        "| kernel, variant | sm | registers | shared, KB | tensor-core instructions | 128-bit loads | spills |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found:
        products = ", ".join(f"{n} {name}" for name, n in r.products.items()) or "none"
        spills = f"{r.stack} B, {r.local} instructions" if r.stack or r.local else "none"
        cells = (r.variant, r.capability, r.registers, f"{r.shared / 1024:.1f}", products, r.wide_loads, spills)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infoseg_fast.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON list on standard output and nothing else")
    parser.add_argument("--markdown", action="store_true", help="the table of the documentation")
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES), choices=sorted(SHARED_MEMORY))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--only", default="", help="specialisations whose description holds this text")
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    chosen = [i for i, s in enumerate(specialisations()) if arguments.only in s.described()]
    found = reports(chosen, arguments.capability, arguments.jobs)
    if arguments.json:
        print(json.dumps([asdict(r) for r in found], indent=1))
    else:
        print(as_markdown(found))
    broken = [r for r in found if r.faults]
    for r in broken:
        print(f"sm_{r.capability} {r.variant}: {'; '.join(r.faults)}", file=sys.stderr)
    if not arguments.json and not arguments.markdown:
        print(f"{len(found)} compilations, {len(broken)} with a fault")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
