"""Versions, machine, backends and ops of this installation. Every run records them, and `infoseg
env` or `python -m infoseg_fast.env` prints them.
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from . import cuda_library, extension
from .ops import OPS, dispatch

PACKAGES = ("infoseg-fast", "torch", "triton", "numpy", "scipy", "pillow", "matplotlib", "tensorboard", "tqdm")


def versions() -> dict[str, str | None]:
    """Installed versions. None: the package is not installed."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str | None:
    """The commit of the checkout that the package runs from. None: it does not run from one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> dict:
    """Versions, commit, machine, backends (name -> None or the reason why it cannot run) and ops
    (name -> backends with a kernel).
    """
    cuda = torch.cuda.is_available()
    return {
        "versions": versions(),
        "commit": commit(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "backends": dispatch.backends(),
        "cuda_library": cuda_library.unavailable(),
        "ops": {name: list(op.backends) for name, op in OPS.items()},
    }


def _build() -> str:
    """The compiler of the C++ extension, its instruction sets and the one in use."""
    record = extension.build_record().get("cpp", {})
    sets = ", ".join(record.get("instruction_sets", ())) or "unknown instruction sets"
    used = extension.compiled().instruction_set()
    return f"built by {record.get('compiler', 'an unknown compiler')} for {sets}; runs {used}"


def as_text() -> str:
    """The environment as lines of text, with the reason for each part that cannot run."""
    found = environment()
    lines = [f"{name:<14} {version or 'not installed'}" for name, version in found["versions"].items()]
    lines += [
        f"{'commit':<14} {found['commit'] or 'not a checkout'}",
        f"{'platform':<14} {found['platform']}",
        f"{'processor':<14} {found['processor']}, {found['cores']} cores, {found['threads']} threads",
        f"{'GPUs':<14} {', '.join(found['gpus']) or 'none'}",
    ]
    lines.append(f"{'C++ extension':<14} {extension.unavailable() or _build()}")
    lines += [f"backend {name:<10} {reason or 'usable'}" for name, reason in found["backends"].items()]
    lines.append(f"{'CUDA library':<18} {found['cuda_library'] or 'usable'}")
    lines += [f"op {name:<24} reference, {', '.join(backends)}" for name, backends in found["ops"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_text())
