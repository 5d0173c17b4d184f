"""Triton kernels, installed as `infoseg_fast.kernels`: the backend "triton" (see `infoseg_fast.dispatch`).

This module is the only door to Triton: it is imported without it and asks no driver.
"""

import functools
import importlib.util
import os

# op name -> kernel, as infoseg_fast.dispatch describes.
KERNELS: dict[str, object] = {}


@functools.cache
def unavailable() -> str | None:
    """Why no Triton kernel can run here; None when one can."""
    if not KERNELS:
        return "this version has no Triton kernels"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device (and TRITON_INTERPRET is not 1)"
