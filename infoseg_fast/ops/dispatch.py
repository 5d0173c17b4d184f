"""Which backends there are, which can run, and which one an op takes.

A backend other than "reference" is a module with

- `unavailable() -> str | None`: why it can run nothing here, None when it can; and
- `KERNELS: dict[str, object]`: for each op it has, the kernel that `infoseg_fast.ops.custom` calls, which has a method
  `unsupported(device_type, dtype) -> str | None`: why this kernel cannot take features of that kind.

So a new kernel is an entry in its backend's `KERNELS`, and nothing else changes.
"""

import functools
import importlib
import logging

import torch

from ..errors import BackendUnavailableError

logger = logging.getLogger("infoseg_fast")

MODULES = {"cpp": "infoseg_fast.ops.cpp", "triton": "infoseg_fast.kernels"}
NAMES = ("auto", "reference", *MODULES)
# What "auto" tries, in this order, by the device of the features.
PREFERENCE = {"cuda": ("triton", "reference"), "cpu": ("cpp", "reference")}


@functools.cache
def _module(name: str):
    try:
        return importlib.import_module(MODULES[name]), None
    except ImportError as error:
        return None, f"importing {MODULES[name]} failed: {error}"


def kernel(op: str, backend: str):
    """The kernel of `op` in `backend`; raises BackendUnavailableError where there is none."""
    module, reason = _module(backend)
    if module is None or op not in module.KERNELS:
        raise BackendUnavailableError(reason or f"{op} has no {backend} kernel")
    return module.KERNELS[op]


def backends() -> dict[str, str | None]:
    """The backends by name: None for one that can run here, else the reason why it cannot."""
    return {"reference": None} | {name: _unavailable(name) for name in MODULES}


def _unavailable(name: str) -> str | None:
    module, reason = _module(name)
    return reason if module is None else module.unavailable()


def _unsupported(op: str, name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why `name` cannot run `op` on features of this kind; None when it can."""
    if name == "reference":
        return None
    reason = _unavailable(name)
    if reason is None and op not in _module(name)[0].KERNELS:
        reason = f"{op} has no {name} kernel"
    return reason or _module(name)[0].KERNELS[op].unsupported(device_type, dtype)


@functools.cache
def _log_once(message: str) -> None:
    logger.warning(message)


def choose(op: str, backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that runs `op` on features of this device type and dtype.

    "auto" takes the first of `PREFERENCE` that can and logs, once for each reason, why an earlier one could not. A
    backend asked for by name that cannot run raises BackendUnavailableError with every backend's reason.
    """
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, not {backend!r}")
    if backend != "auto":
        reason = _unsupported(op, backend, device_type, dtype)
        if reason is not None:
            others = {name: _unsupported(op, name, device_type, dtype) for name in NAMES[1:] if name != backend}
            told = "; ".join(f"{name}: {why or 'available'}" for name, why in others.items())
            raise BackendUnavailableError(f"backend {backend!r} cannot run {op}: {reason} ({told})")
        return backend
    for name in PREFERENCE.get(device_type, ("reference",)):
        reason = _unsupported(op, name, device_type, dtype)
        if reason is None:
            return name
        _log_once(f"{op} does not run on the {name} backend: {reason}")
    raise AssertionError("the reference runs everywhere")


# torch.compile evaluates it once instead of tracing it. torch.compiler.assume_constant_result sets this very attribute,
# but imports the compiler, and with it Triton, on the way.
choose._dynamo_marked_constant = True


def choose_fused_count(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """The backend that `choose` gives for "segment" where it can count while it segments, else None."""
    chosen = choose("segment", backend, device_type, dtype)
    fused = chosen != "reference" and _unsupported("segment_and_count", chosen, device_type, dtype) is None
    return chosen if fused else None


choose_fused_count._dynamo_marked_constant = True
