"""Latency model: programs that a multiprocessor holds at a time and bytes of loads that they have
in flight, from the machine code.

By Little's law a multiprocessor needs rate x latency bytes of loads in flight to use its share of
the DRAM's rate: about 15 KB on an A100 (2.0 TB/s, 108 multiprocessors) and 29 KB on an H200 (4.8
TB/s, 132), at a latency of 0.8 microseconds. A kernel with less is limited by latency. On an A100
20 KB are required.
"""

import math
from dataclasses import dataclass

from .specialisation import BYTES, Specialisation

REGISTERS = 65536  # registers of a multiprocessor, in four parts
REGISTER_UNIT = 256  # registers that a warp takes at a time
RESERVED_SHARED = 1024  # bytes of shared memory that each program takes besides its own


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor (CUDA programming guide, table of compute capabilities).

    Attributes:
        count: number of multiprocessors of the chip.
        shared: bytes of shared memory.
        max_shared: largest number of bytes of shared memory of a program.
        warps, programs: largest numbers at a time.
        in_flight: bytes of loads that it needs in flight. None: unknown.
    """

    chip: str
    count: int
    shared: int
    max_shared: int
    warps: int
    programs: int
    in_flight: int | None = None


KB = 1024
MULTIPROCESSORS = {
    80: Multiprocessor("A100", 108, 164 * KB, 163 * KB, 64, 32, 20 * KB),
    86: Multiprocessor("A10", 72, 100 * KB, 99 * KB, 48, 16),
    89: Multiprocessor("L40", 142, 100 * KB, 99 * KB, 48, 24),
    90: Multiprocessor("H200", 132, 228 * KB, 227 * KB, 64, 32, 29 * KB),
    100: Multiprocessor("B200", 148, 228 * KB, 227 * KB, 64, 32),
    120: Multiprocessor("RTX 5090", 170, 100 * KB, 99 * KB, 48, 24),
}
FULL_WAVE = 0.95  # least number of waves that counts as full: a twentieth of the chip is idle


def resident_programs(capability: int, registers: int, shared: int, num_warps: int) -> int:
    """Number of programs that one multiprocessor holds at a time.

    Args:
        registers: registers per thread.
        shared: bytes of shared memory of a program.
        num_warps: warps of a program.
    """
    chip = MULTIPROCESSORS[capability]
    if shared > chip.max_shared:
        return 0
    per_warp = math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
    warps = min(4 * (REGISTERS // 4 // per_warp), chip.warps)
    return min(warps // num_warps, chip.shared // (shared + RESERVED_SHARED), chip.programs)


def features_under_way(specialisation: Specialisation, shared: int, asynchronous: bool) -> int:
    """Bytes of features that one program loads ahead, 0 for kernels that read none in a loop.

    With S stages S - 1 tiles are in flight while one is used, but not more than the loop has and
    the shared memory holds. Without asynchronous copies one tile is in flight, in registers.

    Args:
        shared: bytes of shared memory of a program.
        asynchronous: whether the machine code copies to shared memory asynchronously.
    """
    loop = specialisation.kernel.feature_loop
    if loop is None:
        return 0
    elements, iterations = loop(dict(specialisation.constexprs))
    tile = elements * BYTES[specialisation.dtype]
    stages = int(dict(specialisation.options)["num_stages"])
    ahead = min(stages - 1, iterations) if asynchronous else 1
    return max(min(ahead * tile, shared), tile)


def waves(capability: int, programs: int, resident: int) -> float:
    """How often the chip fills with programs."""
    return programs / (resident * MULTIPROCESSORS[capability].count) if resident else math.inf
