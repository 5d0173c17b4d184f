"""Loads the CUDA library `infoseg_fast/_cuda.so` on first use. Only this module does. ctypes calls
its C interface.

The library contains its own CUDA runtime. It needs no CUDA toolkit and no particular PyTorch
version, and it loads on a machine without a GPU too.
"""

import ctypes
import functools
from pathlib import Path

import torch

from . import extension

LIBRARY = Path(__file__).parent / "_cuda.so"

POINTER, INT, INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
SIGNATURES = {
    "infoseg_assign": (INT, [POINTER, INT, *[INT64] * 6, INT, POINTER, POINTER, POINTER, POINTER]),
    "infoseg_assign_max_columns": (INT, []),
    "infoseg_count_confusion": (INT, [POINTER, INT, POINTER, INT, *[INT64] * 3, INT, INT64, POINTER, POINTER]),
    "infoseg_cuda_ready": (INT, []),
    "infoseg_cuda_error": (ctypes.c_char_p, [INT]),
}


def open_library(path: Path) -> ctypes.CDLL:
    """The library at `path` with the types of its functions declared."""
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not LIBRARY.exists():
        reason = extension.build_record().get("cuda", {}).get("reason")
        return None, f"the CUDA library was not built: {reason or 'run `pip install .` in the checkout'}"
    try:
        return open_library(LIBRARY), None
    except (OSError, AttributeError) as error:
        return None, f"loading {LIBRARY.name} failed: {error}"


def library() -> ctypes.CDLL | None:
    """The library. None: it cannot be loaded (`unavailable()` gives the reason)."""
    return _load()[0]


def unavailable() -> str | None:
    """The reason why the library cannot be used. None: it can.

    It asks PyTorch for a GPU, so no module calls it at import.
    """
    reason = _load()[1]
    if reason is None and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return reason or _not_ready()


@functools.cache
def _not_ready() -> str | None:
    """The reason why the library's CUDA runtime cannot run, such as an old driver. None: it can."""
    error = library().infoseg_cuda_ready()
    return f"its CUDA runtime reports: {library().infoseg_cuda_error(error).decode()}" if error else None


def run(name: str, device: torch.device, *arguments) -> None:
    """Call a library function on the device's current stream, which is its last argument.

    Raises:
        RuntimeError: the function returned a CUDA error.
    """
    with torch.cuda.device(device):
        error = getattr(library(), name)(*arguments, torch.cuda.current_stream(device).cuda_stream)
    if error:
        raise RuntimeError(f"{name} failed: {library().infoseg_cuda_error(error).decode()}")
