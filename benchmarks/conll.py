"""CoNLL-2003 named entities: routed within half a point of dense at 1.3x measured speed.

Goals: dense entity F1 on test at least 0.865; the routed model within 0.5 points of dense at 1.3x
or better, and above the cut model of the same measured time.
"""

from __future__ import annotations

from typing import Any

from common import Benchmark, goal, main
from datasets_here import conll2003
from frontier_claim import WORK, arms_of, gain_at, loss_at, over_seeds

BUDGETS = [0.95, 0.85, 0.7, 0.6, 0.5, 0.4, 0.35]
SPEEDS = (1.3, 1.5, 1.75, 2.0)


def recipe(task: dict[str, Any], seed: int, quick: bool) -> Any:
    """Cut plus route: the first 4 layers, and a sentence leaves earlier when the least sure of its
    words is sure."""
    return {
        "task": task,
        "routers": [{"kind": "exit", "hold_first": 1}],
        "train": {
            "epochs": 1.0 if quick else 4.0,
            "routed_epochs": 1.0 if quick else 3.0,
            # the host is the cut model that it is compared with; only the heads train on it
            "routed_layers": "first-4",
            "routed_start": "cut",
            "routed_freeze": "host",
            # 32 sentences drawn at random to a step, in four batches of like length
            "batch_size": 8,
            "accumulate": 4,
            "freeze": "none" if not quick else "embeddings",
            "learning_rate": 3e-4,
            "routed_learning_rate": 1e-4,
            "router_learning_rate": 2e-3,
            "seed": seed,
        },
        "measure": {
            "budgets": BUDGETS[::2] if quick else BUDGETS,
            "static": ["first-3"] if quick else ["first-5", "first-4", "first-3"],
            "repeats": 3 if quick else 7,
            "time_examples": 1024,
        },
    }


def run() -> None:
    benchmark = Benchmark("conll", "routed NER within half a point of dense at 1.3x", (0, 1, 2))
    recipes = {}
    for seed in benchmark.seeds:
        task = conll2003(benchmark.folder("conll2003"), WORK, seed, benchmark.quick)
        recipes[seed] = recipe(task, seed, benchmark.quick)
    arms_of(benchmark, "conll2003", recipes)

    def dense(rows: list[Any]) -> float:
        return next(r["f1"] for r in rows if r["family"] == "dense")

    score = over_seeds(benchmark, "conll2003", dense)
    verdict = {"dense entity F1": {**goal(score["mean"], at_least=0.865), "over_seeds": score}}
    for speed in SPEEDS:
        key = f"points lost to dense at {speed:g}x"
        verdict[key] = loss_at(benchmark, "conll2003", "f1", speed, at_most=0.5)
        key = f"routed minus cut at {speed:g}x"
        verdict[key] = gain_at(benchmark, "conll2003", "f1", speed)
    benchmark.finish(verdict)


if __name__ == "__main__":
    main(run)
