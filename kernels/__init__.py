"""Triton kernels, installed as `infoseg_fast.kernels`: the backend "triton" of
`infoseg_fast.ops.dispatch`.

A module has the name of its op, or is shared by several ops. Importing this module needs neither
Triton nor a GPU driver: the first access to `KERNELS` imports Triton.
"""

import functools
import importlib
import importlib.util
import os
import pkgutil

MIN_CAPABILITY = (8, 0)  # tf32 and bfloat16 tensor cores, asynchronous copies


def __getattr__(name: str):
    if name != "KERNELS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The kernel of each op by the op's name: every `launch.OpKernel` of the modules in this folder.
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    from .launch import OP_KERNELS

    globals()[name] = OP_KERNELS  # found without this function from now on
    return OP_KERNELS


@functools.cache
def unavailable() -> str | None:
    """The reason why no Triton kernel can run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if interpreted():
        return _import_error()
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device (and TRITON_INTERPRET is not 1)"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs, and this torch is built for ROCm"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0"
    return _import_error()


def _import_error() -> str | None:
    """Why a Triton that is installed cannot be imported, such as one for another PyTorch, or None."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"importing triton failed: {error}"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter. Triton reads the variable when a kernel is
    defined.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"
