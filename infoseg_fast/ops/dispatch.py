"""The backends (see `infoseg_fast.ops.protocol`), and the choice of one for a call."""

import functools
import importlib
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import BackendUnavailableError

logger = logging.getLogger("infoseg_fast")

MODULES = {"cpp": "infoseg_fast.ops.cpp", "triton": "infoseg_fast.kernels"}
NAMES = ("auto", "reference", *MODULES)
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))
# The backends that "auto" tries, in this order, by the device of the tensors.
PREFERENCE = {"cuda": ("triton", "reference"), "cpu": ("cpp", "reference")}


@functools.cache
def _module(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(MODULES[name]), None
    except ImportError as error:
        return None, f"importing {MODULES[name]} failed: {error}"


def kernel(op: str, backend: str) -> Any:
    """The kernel of `op` in `backend`.

    Raises:
        BackendUnavailableError: there is none.
    """
    module, reason = _module(backend)
    if module is None or op not in module.KERNELS:
        raise BackendUnavailableError(reason or f"{op} has no {backend} kernel")
    return module.KERNELS[op]


def backends() -> dict[str, str | None]:
    """The backends by name: None if the backend can run here, else the reason why it cannot."""
    return {"reference": None} | {name: _unavailable(name) for name in MODULES}


def _unavailable(name: str) -> str | None:
    module, reason = _module(name)
    return reason if module is None else module.unavailable()


def _unsupported(op: str, name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """The reason why the backend `name` cannot run `op` on such tensors. None: it can."""
    if name == "reference":
        return None
    reason = _unavailable(name)
    if reason is not None:
        return reason
    try:
        return kernel(op, name).unsupported(device_type, dtype)
    except BackendUnavailableError as error:
        return str(error)


@functools.cache
def log_once(message: str) -> None:
    """Log a warning, but only once."""
    logger.warning(message)


def choose(op: str, backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that runs `op` on tensors of this device type and dtype.

    "auto" takes the first backend of `PREFERENCE` that can run, and logs once why an earlier one
    cannot.

    Raises:
        ValueError: there is no backend with this name.
        BackendUnavailableError: the backend that is named cannot run. The text has the reason of
            each backend.
    """
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, not {backend!r}")
    if backend != "auto":
        reason = _unsupported(op, backend, device_type, dtype)
        if reason is not None:
            others = {name: _unsupported(op, name, device_type, dtype) for name in NAMES[1:] if name != backend}
            reasons = "; ".join(f"{name}: {why or 'available'}" for name, why in others.items())
            raise BackendUnavailableError(f"backend {backend!r} cannot run {op}: {reason} ({reasons})")
        return backend
    for name in PREFERENCE.get(device_type, ("reference",)):
        reason = _unsupported(op, name, device_type, dtype)
        if reason is None:
            return name
        log_once(f"{op} does not run on the {name} backend: {reason}")
    raise AssertionError("the reference runs everywhere")


# torch.compile evaluates the function once instead of tracing it.
# torch.compiler.assume_constant_result sets this attribute too, but imports the compiler and Triton.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def exporting() -> bool:
    """Whether `torch.export` runs."""
    return torch.compiler.is_exporting()


# The compiler of PyTorch 2.9 takes `is_exporting()` for True, whatever it compiles for.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def device_type(x: Tensor) -> str:
    """`x.device.type`, which makes a device and a string at each call."""
    return "cuda" if x.is_cuda else "cpu" if x.is_cpu else x.device.type


def select(op: str, backend: str, tensor: Tensor) -> str:
    """The backend that runs `op` on tensors like this one, in the current state of PyTorch.

    Kernels cannot run under `torch.func` transforms, forward-mode differentiation and
    `torch.jit.trace`. There "auto" takes the reference. `torch.export` records the reference for
    "auto", so that the program runs without this package, and the custom op for a backend that is
    named.

    Raises:
        ValueError, BackendUnavailableError: as in `choose`, or the backend that is named cannot run
            in this state.
    """
    chosen = choose(op, backend, device_type(tensor), tensor.dtype)
    if chosen == "reference":
        return chosen
    if torch.compiler.is_compiling():
        return "reference" if backend == "auto" and exporting() else chosen
    reason = _no_kernels_now()
    if reason is not None and backend != "auto":
        raise BackendUnavailableError(f'backend {backend!r} cannot run {op} {reason}; backend="reference" can')
    return chosen if reason is None else "reference"


def fused_count(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """`backend` if its `segment_and_count` takes such tensors, else None."""
    fused = backend != "reference" and _unsupported("segment_and_count", backend, device_type, dtype) is None
    return backend if fused else None


fused_count._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _no_kernels_now() -> str | None:
    """The reason why no kernel can run in the current state of PyTorch. None: kernels can run."""
    if torch._C._are_functorch_transforms_active():
        return "under torch.func transforms (grad, vmap, jvp)"
    if forward_ad._current_level >= 0:
        return "in forward-mode automatic differentiation"
    return "under torch.jit.trace" if torch._C._get_tracing_state() is not None else None


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors outside the compiler, without a dispatch mode."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return _PLAIN.issuperset(map(type, tensors))


def direct(*tensors: Tensor | None) -> bool:
    """Whether compiled code may read these tensors: they are plain, and nothing records or
    transforms the call.
    """
    return plain(*tensors) and _no_kernels_now() is None


def first_derivatives_only(op: str) -> str:
    """The message of an error about derivatives that no kernel of `op` has."""
    return (
        f"{op}: kernels have first derivatives only. Second derivatives (create_graph=True), torch.func transforms "
        'and forward mode need backend="reference"'
    )
