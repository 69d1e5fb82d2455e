"""Train several run folders at once, each in a process of its own with its share of the cores.

Small models do not use many cores well: two trainings with one thread each take little longer than
one of them with two.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from turnout.allocator import keep_memory
from turnout.recipe import Recipe
from turnout.train.pipeline import train


def train_at_once(
    recipes: Mapping[Path, Recipe], dense: Path, jobs: int, say: Callable[[str], None]
) -> None:
    """Train a recipe into each folder, or go on there, ``jobs`` at a time.

    dense: as of ``train``. Routers must be some that turnout brings: a new process knows no others.
    Raises what the first failing training raises; those under way end, the rest is not begun.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )
    with pool:
        made = {pool.submit(_train, recipe, out, dense): out for out, recipe in recipes.items()}
        try:
            for future in as_completed(made):
                say(f"== {made[future].name}: {future.result():,.0f} s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    keep_memory()
    torch.set_num_threads(threads)


def _train(recipe: Recipe, out: Path, dense: Path) -> float:
    start = time.perf_counter()
    train(recipe, out, dense=dense, say=_silent, progress=False)
    return time.perf_counter() - start


def _silent(text: str) -> None:
    """Several processes would talk into each other's lines."""
