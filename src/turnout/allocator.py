"""What processes of our own keep: freed memory, and products that were prepared.

The allocator of Linux gives large tensors back at once. A forward pass allocates the same ones
again and again. glibc returns those above 32 MB to the kernel when they are freed, which must then
clear every page anew: 5 to 35 % of a training step on a CPU.

In bf16 on a CPU, oneDNN prepares a product for each shape that it meets, which takes 0.4 ms, and
remembers 1,024 of them. Routed models meet more: as many numbers of rows as there are.

For processes that are our own (command line, benchmarks); a library does not decide this. In a
script of yours, call ``turnout.allocator.keep()`` before the first model.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


PRODUCTS = 4096  # of 270 kB at most


def keep() -> None:
    """Keep memory and products; call it before the first product."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS))
    keep_memory()


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
