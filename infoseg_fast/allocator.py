"""Settings of the C library's memory allocator."""

import ctypes
import os

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_HEAP_BLOCK = 32 << 20  # bytes; glibc always maps larger blocks by themselves


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next allocations. Returns whether the C library
    can.

    A training step frees and allocates the same tens of megabytes again and again. By default glibc
    returns free memory at the end of the heap to the system. The system must then clear every page
    anew, and threads wait for one another (docs/cpu_kernels.md, Threads). Does nothing where
    MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is set.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
