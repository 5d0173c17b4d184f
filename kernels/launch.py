"""How the host starts a kernel: one function, at which launches can be recorded instead of run.

What is recorded is exactly what would have been started, so ahead-of-time compilation (`aot`), the cost model
(`roofline`) and the tests of the plumbing look at the ops' own launches, on fake CUDA tensors, without a GPU.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import Config


@dataclass(frozen=True)
class Cost:
    """What a launch moves and computes.

    loads and stores are the bytes that its instructions ask for, masked lanes not counted. distinct_loads counts each
    byte once: what DRAM must give when whatever is read again is still in the L2 cache. operations are those of the
    products as they are issued, padding included (`product_operations`). atomics is the most additions to global
    memory that the data can cause.
    """

    loads: int
    stores: int
    distinct_loads: int
    operations: int = 0
    atomics: int = 0

    @property
    def moved(self) -> int:
        """Bytes between the chip and its DRAM."""
        return self.distinct_loads + self.stores


def product_operations(m: int, n: int, k: int, precision: str) -> int:
    """Of one product [m, k] [k, n]; "tf32x3" issues three."""
    return 2 * m * n * k * (3 if precision == "tf32x3" else 1)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A Triton function with what is promised of its machine code and its cost; made by `kernel`.

    products: it multiplies matrices, so tensor-core instructions must appear.
    wide_loads: 128-bit global loads must appear where the tensors allow them.
    """

    function: object
    products: bool
    wide_loads: bool
    cost: Callable[["Launch"], Cost]

    @property
    def name(self) -> str:
        return self.function.fn.__name__

    @property
    def parameters(self) -> dict[str, str]:
        """Name and annotation ("", "constexpr", "i32", ...) of each, in order."""
        names = {tl.constexpr: "constexpr", tl.int32: "i32", tl.int64: "i64", tl.float64: "fp64"}
        parameters = inspect.signature(self.function.fn).parameters.values()
        return {p.name: names.get(p.annotation, "") for p in parameters}


def kernel(*, products: bool, wide_loads: bool, cost: Callable[["Launch"], Cost]) -> Callable[..., Kernel]:
    """Decorator of a Triton kernel. Its parameters are pointers, `tl.constexpr`, or numbers of a stated type.

    Triton would compile anew for numbers that are 1 or divide by 16; here what matters of a number is a constexpr of
    its own, so the variants are few and all of them are compiled ahead of time in the tests.
    """

    def made(function) -> Kernel:
        numbers = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.annotation in (tl.int32, tl.int64, tl.float64)
        ]
        return Kernel(triton.jit(function, do_not_specialize=numbers), products, wide_loads, cost)

    return made


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel with all that it is started with."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constexprs: dict[str, object]
    config: Config

    @property
    def programs(self) -> int:
        total = 1
        for n in self.grid:
            total *= n
        return total


_recording: list[Launch] | None = None


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it nothing is started; every launch is appended to the list."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


def launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    arguments: dict[str, Tensor | int | float | None],
    constexprs: dict[str, object],
    config: Config,
) -> None:
    """Start `kernel` on the device and current stream of its tensors; nothing where the grid is empty.

    The block sizes of `config` are added to the constexprs. An argument of None is a pointer that the kernel's
    constexprs say is not used.
    """
    if any(n == 0 for n in grid):
        return
    started = Launch(kernel, grid, arguments, constexprs | config.blocks, config)
    if _recording is not None:
        _recording.append(started)
        return
    device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    # Triton asks for the current device and its current stream, which need not be those of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel.function[grid](**started.arguments, **started.constexprs, **config.options())
