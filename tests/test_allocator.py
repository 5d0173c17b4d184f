"""Freed memory is kept: pages are not faulted in again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parent.parent / "infoseg_fast/allocator.py"  # alone: the package imports torch
# Takes and frees 12 blocks of 16 MB three times; prints the page faults of the last time.
PROGRAM = """
import ctypes, resource, runpy, sys
kept = runpy.run_path(sys.argv[2])["keep_freed_memory"]() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p], [
    ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(16 << 20) for _ in range(12)]
    for block in blocks:
        libc.memset(block, 1, 16 << 20)
    for block in reversed(blocks):
        libc.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, how, MODULE]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc"
)
def test_freed_memory_is_kept_unless_the_user_decided():
    kept, count = faults("keep")
    assert kept == "True" and int(count) < 1000  # of 49,152 pages
    assert int(faults("leave")[1]) > 1000
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"
