"""Time and memory of several models, measured fairly against each other."""

from __future__ import annotations

import ctypes
import gc
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each arm in each of `repeats` rounds; entry r of every list is round r.

    Each round runs every arm once in a newly shuffled order: a machine that is slow for a while is
    slow for all arms, and no arm always follows the same neighbour. `warmup` rounds are not kept.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, found {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    rng = random.Random(seed)
    for round_ in range(-warmup, repeats):
        rng.shuffle(order)
        for name in order:
            elapsed = _seconds(arms[name])
            if round_ >= 0:
                seconds[name].append(elapsed)
    return seconds


def peak_memory(fn: Callable[[], object]) -> int | None:
    """Peak bytes while `fn` runs: allocated by torch on a GPU if there is one, else resident.

    The resident peak is the whole process: interpreter, libraries, and every model that is loaded.
    Arms measured in one process share that floor, so read differences between arms, not ratios.
    None where the system does not tell (not Linux, or the counter cannot be reset).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        fn()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    _return_freed_memory()
    try:
        _CLEAR_REFS.write_text("5")  # resets VmHWM, the highest resident size so far
    except OSError:
        return None
    fn()
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _seconds(fn: Callable[[], object]) -> float:
    gc.collect()  # garbage of the arm before must not be charged to this one
    _synchronize()
    start = time.perf_counter()
    fn()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _return_freed_memory() -> None:
    """Pages that an earlier arm freed but the allocator keeps would count as this arm's."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library: the peak is then an upper bound
