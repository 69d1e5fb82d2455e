"""Keep freed memory in the process: the allocator of Linux gives large tensors back at once.

A forward pass allocates the same large tensors again and again. glibc returns those above 32 MB to
the kernel when they are freed, which must then clear every page anew: 5 to 35 % of a training step
on a CPU. For processes that are our own (command line, benchmarks); a library does not decide
this. In a script of yours, call ``turnout.allocator.keep_memory()`` before the first model.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_memory() -> bool:
    """Take blocks of up to 1 GiB from memory that stays in the process; False where the C library
    has no such setting (macOS, Windows, musl)."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    if not mallopt(_MMAP_THRESHOLD, 2**30) and not mallopt(_MMAP_THRESHOLD, 2**25):
        return False  # some versions allow half of a heap at most
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_TOP_PAD, 2**28))
