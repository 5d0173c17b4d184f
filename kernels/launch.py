"""How the host launches a kernel. Launches can be recorded instead of run.

A recorded launch is exactly the launch that would run. The ahead-of-time compiler, the cost model
(both in `infoseg_fast.bench`) and the tests read recorded launches of the ops on fake CUDA tensors,
without a GPU.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import interpreted
from .configs import Config

OP_KERNELS: dict[str, "OpKernel"] = {}


class OpKernel:
    """Base class of the object that an op calls: `class AssignKernel(OpKernel, op="assign")`
    registers one of it.

    The methods of a subclass are those of the kernel protocol in `infoseg_fast.ops.protocol`.
    """

    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of the features

    def __init_subclass__(cls, op: str | None = None, **options):
        super().__init_subclass__(**options)
        if op is not None:
            OP_KERNELS[op] = cls()

    def unsupported(self, device_type: str, dtype: torch.dtype) -> str | None:
        """The reason why this kernel cannot take features of this device type and dtype, or None."""
        if device_type != "cuda" and not (device_type == "cpu" and interpreted()):
            return f"it runs on CUDA devices, not on {device_type} (except with TRITON_INTERPRET=1)"
        return None if dtype in self.dtypes else f"it has no kernel for {dtype}"


def num_bytes(*tensors: Tensor | None) -> int:
    """Bytes of the elements of the tensors; None counts as 0."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of a launch.

    Attributes:
        loads, stores: bytes of the instructions, without masked lanes.
        distinct_loads: bytes of the loads, each address counted once: those that the DRAM delivers
            if every repeated load hits the L2 cache.
        operations: floating-point operations of the matrix products, padding included
            (`product_operations`).
        atomics: upper bound of the number of additions to global memory.
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
    """Floating-point operations of one product [m, k] [k, n]. "tf32x3" issues three products."""
    return 2 * m * n * k * (3 if precision == "tf32x3" else 1)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A Triton function with the promises about its machine code and its cost. The decorator
    `kernel` makes it.

    Attributes:
        products: the kernel multiplies matrices, so tensor-core instructions must appear.
        wide_loads: 128-bit global loads must appear where the tensors allow them.
        feature_loop: constexprs -> elements of features that an iteration of the innermost loop
            loads, and iterations; None for kernels without such a loop.
    """

    function: object
    products: bool
    wide_loads: bool
    cost: Callable[["Launch"], Cost]
    feature_loop: Callable[[dict[str, object]], tuple[int, int]] | None = None

    @property
    def name(self) -> str:
        return self.function.fn.__name__

    @functools.cached_property
    def parameters(self) -> dict[str, str]:
        """Name and annotation ("", "constexpr", "i32", ...) of each parameter, in order."""
        names = {tl.constexpr: "constexpr", tl.int32: "i32", tl.int64: "i64", tl.float64: "fp64"}
        parameters = inspect.signature(self.function.fn).parameters.values()
        return {p.name: names.get(p.annotation, "") for p in parameters}


def kernel(
    *,
    cost: Callable[["Launch"], Cost],
    products: bool = False,
    wide_loads: bool = False,
    feature_loop: Callable[[dict[str, object]], tuple[int, int]] | None = None,
) -> Callable[..., Kernel]:
    """Decorator of a Triton kernel. Its parameters are pointers, `tl.constexpr`, or numbers of a
    stated type.

    Triton would compile another variant for numbers that are 1 or divisible by 16. Numbers here are
    not specialised: a divisibility that matters is a constexpr. This keeps the variants few, so all
    can be compiled ahead of time.
    """

    def decorate(function) -> Kernel:
        parameters = inspect.signature(function).parameters.values()
        numbers = [p.name for p in parameters if p.annotation in (tl.int32, tl.int64, tl.float64)]
        return Kernel(triton.jit(function, do_not_specialize=numbers), products, wide_loads, cost, feature_loop)

    return decorate


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel, its grid and everything that it is called with."""

    kernel: Kernel
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float | None]
    constexprs: dict[str, object]
    config: Config

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    def run(self) -> object:
        """Run the kernel on the device of its tensors and on that device's current stream.

        Returns what Triton returns: the compiled kernel, None in the interpreter.
        """
        device = next(x.device for x in self.arguments.values() if isinstance(x, Tensor))
        # Triton takes the current device and its stream, which need not be those of the tensors.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return self.kernel.function[self.grid](
                **_numbers(self.arguments), **self.constexprs, **self.config.options()
            )


def _numbers(arguments: dict[str, Tensor | int | float | None]) -> dict[str, object]:
    """The arguments, with float64 numbers where Triton's interpreter would take float32."""
    if not interpreted():
        return arguments
    from triton.runtime.interpreter import TensorHandle

    def number(x: object) -> object:
        return tl.tensor(TensorHandle(np.array([x]), tl.float64), tl.float64) if isinstance(x, float) else x

    return {name: number(x) for name, x in arguments.items()}


_recording: list[Launch] | None = None


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Context in which launches are appended to the list instead of run."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


def recording() -> bool:
    """Whether launches are recorded."""
    return _recording is not None


def launch(
    kernel: Kernel,
    grid: tuple[int, ...],
    arguments: dict[str, Tensor | int | float | None],
    constexprs: dict[str, object],
    config: Config,
) -> None:
    """Run `kernel`, or record the launch. An empty grid does nothing.

    The block sizes of `config` are added to the constexprs. An argument of None is a pointer that
    the kernel skips.
    """
    if any(n == 0 for n in grid):
        return
    started = Launch(kernel, grid, arguments, constexprs | config.blocks, config)
    if _recording is None:
        started.run()
    else:
        _recording.append(started)
