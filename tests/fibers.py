"""CUDA sources compiled for the CPU by tests/cuda_harness, and programs for sanitizers."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from infoseg_fast import cuda_library

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT / "tests" / "cuda_harness"
ASSIGNMENT = ROOT / "csrc" / "linear_sum_assignment" / "linear_sum_assignment.cu"
CONFUSION = ROOT / "csrc" / "confusion_matrix" / "confusion_matrix.cu"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

needs_compiler = pytest.mark.skipif(
    COMPILER is None or platform.machine() != "x86_64" or platform.system() != "Linux",
    reason="the harness needs g++ or clang++ on x86-64 Linux",
)


def compiled(output: Path, sources: list[str | Path], *flags: str) -> Path:
    """`sources`, of the harness where relative, compiled against it."""
    paths = [str(HARNESS / source) for source in sources]
    command = [COMPILER, "-std=c++17", "-g", *flags, f"-I{HARNESS}", *paths, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def open_fibers(folder: Path):
    """The CUDA sources as a CPU library with the CUDA library's own interface."""
    sources = ["cuda_library.cpp", "linear_sum_assignment.cpp", "confusion_matrix.cpp"]
    return cuda_library.open_library(compiled(folder / "fibers.so", sources, "-O2", "-shared", "-fPIC"))


def runner(library):
    """What `cuda_library.run` is, for such a library."""

    def run(name, device, *arguments):
        error = getattr(library, name)(*arguments, None)
        assert error == 0, library.infoseg_cuda_error(error).decode()

    return run


def race_check(folder: Path, *flags: str, assignment: Path = ASSIGNMENT, confusion: Path = CONFUSION) -> Path:
    """The program that runs every kernel, compiled with `flags`."""
    defined = [f'-DINFOSEG_ASSIGNMENT="{assignment}"', f'-DINFOSEG_CONFUSION="{confusion}"']
    return compiled(folder / "race_check", ["race_check.cpp"], "-O1", *defined, *flags)
