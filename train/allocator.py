"""Memory for large tensors on the CPU, kept instead of asked for anew.

By its defaults glibc's malloc gives each block above 32 MiB back to the system at once, and the next comes in pages
which the system has to clear and map one by one: to fill a tensor of 100 MB took nine times as long as to fill one
that was there, and a training step of TANet-50 a quarter longer. jemalloc and tcmalloc, preloaded, keep memory too.
"""

import ctypes
import os

_PARAMETERS = {-4: 0, -1: 2**31 - 1, -2: 2**28}  # M_MMAP_MAX: no block of its own; M_TRIM_THRESHOLD, M_TOP_PAD: bytes
_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what its tensors free, for the next ones, until it ends; whether it does so now.

    Does nothing where the C library has no `mallopt`, or where its variables in the environment are set: they count.
    """
    if any(name in os.environ for name in _OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return all(mallopt(parameter, value) for parameter, value in _PARAMETERS.items())
