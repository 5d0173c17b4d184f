"""PyTorch's defaults while this package builds its own networks, whatever the user has set.

`torch.set_default_dtype`, `torch.set_default_device` and `with torch.device(...)` decide what a
tensor is that names neither its dtype nor its device. The networks of a run are float32, and are
built on the CPU.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def float32_on_cpu() -> Iterator[None]:
    """A context in which new tensors are float32 on the CPU. The dtype is PyTorch's own for all
    threads.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # A context of a device takes some microseconds of every call.
        with contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
