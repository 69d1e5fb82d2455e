"""AG News slice and SST-2: early exit with pooled survivors against plainly cut models.

Goals: above the cut model of the same measured time at every point from 1.5x to 4x, and within 1
point of the dense host at 3x or better. Cut models start from the same dense host and get the
same steps, teacher and objectives.
"""

from __future__ import annotations

from typing import Any

from common import Benchmark, main
from datasets_here import ag_news, sst2
from frontier_claim import WORK, arms_of, gain_at, loss_at, named

SPEEDS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
BUDGETS = [0.65, 0.55, 0.45, 0.38, 0.32, 0.26, 0.2, 0.15, 0.1]
EPOCHS = {"ag_news": (2.0, 2.0), "sst2": (3.0, 3.0)}
READERS = {"sst2": sst2, "ag_news": ag_news}


def recipe(task: dict[str, Any], epochs: tuple[float, float], seed: int, quick: bool) -> Any:
    """The recipe of one run; quick runs one epoch each and fewer arms."""
    first, second = (1.0, 1.0) if quick else epochs
    return {
        "task": task,
        "routers": [{"kind": "exit", "hidden": 384}],
        "train": {
            "epochs": first,
            "routed_epochs": second,
            "dropout": 0.0,
            "freeze": "embeddings",
            "learning_rate": 2e-4,
            "router_learning_rate": 2e-3,
            "precision": "auto",
            "seed": seed,
        },
        "measure": {
            "budgets": BUDGETS[1::3] if quick else BUDGETS,
            "static": ["first-2", "first-3"]
            if quick
            else ["first-1", "first-2", "first-3", "first-4", "every-other"],
            "repeats": 3 if quick else 7,
            "time_examples": 960,
        },
    }


def run() -> None:
    benchmark = Benchmark(
        "classification", "early exit beats plain cutting at equal measured time", (0, 1, 2)
    )
    for name, read in READERS.items():
        recipes = {}
        for seed in benchmark.seeds:
            files = WORK / f"{named(name, seed, benchmark.quick)}-data"
            task = read(benchmark.folder(name), files, seed, benchmark.quick)
            recipes[seed] = recipe(task, EPOCHS[name], seed, benchmark.quick)
        arms_of(benchmark, name, recipes)
    verdict = {}
    for name in READERS:
        for speed in SPEEDS:
            key = f"{name}: routed minus cut at {speed:g}x"
            verdict[key] = gain_at(benchmark, name, "accuracy", speed)
        key = f"{name}: points lost to dense at 3x"
        verdict[key] = loss_at(benchmark, name, "accuracy", 3.0, at_most=1.0)
    benchmark.finish(verdict)


if __name__ == "__main__":
    main(run)
