"""The Triton kernels in Triton's interpreter: tests/interpreted runs in processes of its own.

Triton reads TRITON_INTERPRET when a kernel is defined.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
LONG = ("test_mutual_information_loss", "test_costs")  # every op has a check in test_every_op too


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.long)])
def test_in_the_interpreter(long):
    files = [str(file) for file in FILES if (file.stem in LONG) == long]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
