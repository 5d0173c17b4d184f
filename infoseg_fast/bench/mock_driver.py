"""A Triton driver that launches nothing: Triton binds, specialises and compiles every launch of the
ops on a machine without a GPU.

Tensors stay on the CPU and outputs stay uninitialised. The host's side of a launch runs as on a
GPU: the ops' Python code, Triton's search for the compiled kernel, and its compiler.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ..kernels import interpreted
from ..kernels.plans import forget_plans
from ..ops import dispatch

# Triton caches compiled kernels by the number of the device. No GPU has these numbers.
DEVICE, DEVICE_WITHOUT_COMPILER = 1000, 1001
CAPABILITY = 90


@dataclass(frozen=True)
class Started:
    """One launch, as the GPU would have received it.

    Attributes:
        source: Triton's `ASTSource`: the kernel, its signature, constants and alignments.
        metadata: metadata of the compiled kernel, such as its number of warps.
        values: values of all parameters of the kernel, in order. Pointers are tensors or addresses.
    """

    name: str
    grid: tuple[int, int, int]
    source: Any
    metadata: Any
    values: tuple[Any, ...]


class _Utils:
    """Stands for the CUDA driver's functions, with the figures of an H100."""

    def load_binary(self, name, kernel, shared, device):
        return 1, 1, 64, 0, 1024  # module, function, registers, spills, maximum threads

    def unload_module(self, module):
        pass

    def get_device_properties(self, device):
        sizes = {"max_shared_mem": 227 * 1024, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}
        return sizes | {"sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1}


def _launcher(source: Any, metadata: Any) -> Callable[..., None]:
    """A launcher that adds the launch to the list of the current context."""

    def launch(x, y, z, stream, function, packed, launch_metadata, enter_hook, exit_hook, *values):
        started = driver.active.started
        if started is not None:
            started.append(Started(source.fn.__name__, (x, y, z), source, metadata, values))

    return launch


class _Uncompiled:
    """Stands for a compiled kernel."""

    function = packed_metadata = metadata = None

    def __init__(self, source: Any, **options: Any):
        self.run = _launcher(source, None)

    def launch_metadata(self, *_: Any) -> None:
        pass


class _Driver:
    """Triton's driver protocol."""

    launcher_cls = staticmethod(_launcher)

    def __init__(self, device: int, started: list[Started] | None):
        self.device, self.started, self.utils = device, started, _Utils()

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cuda

    def map_python_to_cpp_type(self, kind):
        return kind

    def is_active(self):
        return True


@contextlib.contextmanager
def mocked(*, compiles: bool = True, keep: bool = True) -> Iterator[list[Started]]:
    """A context in which the ops pass tensors on the CPU to their Triton kernels, and nothing is
    launched.

    Args:
        compiles: compile the kernels. Otherwise Triton only binds and specialises their arguments.
        keep: add each launch to the list that the context gives.
    """
    if interpreted():
        raise RuntimeError("the mocked driver needs Triton's compiler; unset TRITON_INTERPRET")
    started: list[Started] = []
    unsupported, before = dispatch._unsupported, driver._active

    def allowed(op, name, *kind):
        return None if name == "triton" else unsupported(op, name, *kind)

    device = DEVICE if compiles else DEVICE_WITHOUT_COMPILER
    forget_plans()  # they hold kernels of another context
    driver.set_active(_Driver(device, started if keep else None))
    compiler = contextlib.nullcontext() if compiles else patch.object(triton.compiler, "compile", _Uncompiled)
    try:
        with (
            patch.object(dispatch, "_unsupported", allowed),
            patch.dict(dispatch.PREFERENCE, {"cpu": dispatch.PREFERENCE["cuda"]}),
            compiler,
        ):
            yield started
    finally:
        driver.set_active(before)
        forget_plans()
