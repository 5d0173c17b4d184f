"""The stage of `first_hour` that builds and checks the CUDA library."""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch

from .. import cuda_library
from ..errors import first_line
from ..ops.confusion_matrix import confusion_matrix
from ..ops.linear_sum_assignment import linear_sum_assignment
from . import cuda
from .first_hour import FAILED, PASSED, SKIPPED, Table

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cuda")
REPEATS = 15  # replays that a time is the median of


def build_library() -> str | None:
    """Compile the CUDA library of the checkout for this GPU. Returns the reason if that failed."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return "no nvcc was found (CUDACXX names one)"
    found = torch.cuda.get_device_properties(DEVICE)
    target = f"-arch=sm_{found.major}{found.minor}"
    flags = ["-O3", "-std=c++17", "-shared", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]
    sources = sorted(str(path) for path in (ROOT / "csrc").rglob("*.cu"))
    with tempfile.TemporaryDirectory(dir=cuda_library.LIBRARY.parent) as folder:
        made = Path(folder) / "made.so"
        command = [nvcc, *flags, target, *sources, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return first_line(done.stderr or done.stdout)
        made.replace(cuda_library.LIBRARY)
    return None


def use_library(table: Table) -> bool:
    """Whether the CUDA library can be used. It is built if it is missing."""
    if not cuda_library.LIBRARY.exists():
        start = time.monotonic()
        reason = build_library()
        table.add("build", round(time.monotonic() - start, 1), "s", SKIPPED if reason else PASSED, detail=reason or "")
        if reason:
            return False
    reason = cuda_library.unavailable()
    if reason:
        table.add("load", status=FAILED, detail=reason)
    return reason is None


def library(table: Table) -> None:
    """Compare the CUDA library with scipy and with the host, and time it."""
    if not use_library(table):
        return
    rng = np.random.default_rng(0)
    for shape in ((50, 5, 5), (20, 27, 27), (4, 33, 40), (2, 300, 200), (30, 12, 12)):
        many_ties = shape[1] == 12
        costs = rng.integers(0, 4, shape).astype(np.float64) if many_ties else rng.random(shape)
        cols = linear_sum_assignment(torch.from_numpy(costs).to(DEVICE), backend="cuda")[1]
        expected = [scipy.optimize.linear_sum_assignment(cost)[1] for cost in costs]
        wrong = sum((a != b).any() for a, b in zip(np.asarray(cols.cpu()), expected, strict=True))
        status = FAILED if wrong else PASSED
        table.add("linear_sum_assignment", int(wrong), "problems unlike scipy's", status, setting=shape)
    for classes in (3, 27, 200):
        generator = torch.Generator().manual_seed(classes)
        pred, target = torch.randint(0, classes, (2, 8, 200, 300), generator=generator, dtype=torch.uint8)
        found: Any = confusion_matrix(pred.to(DEVICE), target.to(DEVICE), classes, classes)
        expected = confusion_matrix(pred, target, classes, classes)
        status = PASSED if torch.equal(found.cpu(), expected) else FAILED
        table.add("confusion_matrix", setting=f"{classes} classes", status=status)
    costs = torch.rand(300, 27, 27, device=DEVICE)
    labels = torch.randint(0, 27, (2, 64, 128, 128), device=DEVICE).to(torch.uint8)
    steps: dict[str, Callable[[], Any]] = {
        "linear_sum_assignment of 300 x 27 x 27": lambda: linear_sum_assignment(costs, backend="cuda"),
        "confusion_matrix of 64 x 128 x 128": lambda: confusion_matrix(labels[0], labels[1], 27, 27),
    }
    for name, step in steps.items():
        table.add(name, round(statistics.median(cuda.replayed(step, REPEATS, DEVICE)), 2), "us")
