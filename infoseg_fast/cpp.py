"""The backend "cpp": C++ kernels for CPUs, from the compiled extension (see `infoseg_fast.dispatch`)."""

from . import extension

# op name -> kernel, as infoseg_fast.dispatch describes.
KERNELS: dict[str, object] = {}


def unavailable() -> str | None:
    """Why no C++ kernel can run here; None when one can."""
    return extension.unavailable() or (None if KERNELS else "this version has no C++ kernels for the ops")
