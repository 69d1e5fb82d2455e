"""Work in several processes at once, each with its share of the cores.

Small models do not use many cores well: two trainings with one thread each take little longer than
one of them with two.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from turnout.allocator import keep
from turnout.recipe import Recipe
from turnout.train.pipeline import train


def in_processes(calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """What calls (function, arguments ...) give, in their order, ``jobs`` of them at a time in
    processes of their own.

    Functions and arguments must be such as a new process can import and read. Raises what the first
    failing call raises; those under way end, the rest is not begun.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )
    with pool:
        made = [pool.submit(*call) for call in calls]
        try:
            for future in made:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train_at_once(
    recipes: Mapping[Path, Recipe], dense: Path, jobs: int, say: Callable[[str], None]
) -> None:
    """Train a recipe into each folder, or go on there, ``jobs`` at a time.

    dense: as of ``train``. Routers must be some that turnout brings: a new process knows no others.
    Raises as ``in_processes`` does.
    """
    calls = [(_train, recipe, out, dense) for out, recipe in recipes.items()]
    for out, seconds in zip(recipes, in_processes(calls, jobs), strict=True):
        say(f"== {out.name}: {seconds:,.0f} s")


def _begin(threads: int) -> None:
    keep()
    torch.set_num_threads(threads)


def _train(recipe: Recipe, out: Path, dense: Path) -> float:
    start = time.perf_counter()
    train(recipe, out, dense=dense, say=_silent, progress=False)
    return time.perf_counter() - start


def _silent(text: str) -> None:
    """Several processes would talk into each other's lines."""
