"""What the C library does with memory that a program has freed."""

import ctypes
import os

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_HEAP_BLOCK = 32 << 20  # glibc takes larger ones from the system each time, whatever it is told


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees for what it allocates next; returns whether the C library can.

    A training step frees and allocates the same tens of megabytes again and again. As it comes, glibc hands what is
    free at the heap's end back to the system, step after step in some processes and never in others; every page must
    then be faulted in and cleared anew, for which threads wait on one another (docs/cpu_kernels.md, Threads). A user's
    own MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is left as it is.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
