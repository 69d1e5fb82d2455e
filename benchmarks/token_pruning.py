"""Token pruning by attention on AG News: within a point of dense at 1.9x measured speed or better.

From the third layer on, tokens that the class token of the layer before did not attend to are
removed (learned token pruning, PoWER-BERT): in all six layers, and in the first four alone, where
the deepest two add little. Cut models beside it have the same start, data and steps.
"""

from __future__ import annotations

from typing import Any

import classification
from common import Benchmark, main
from datasets_here import ag_news
from frontier_claim import WORK, arms_of, gain_at, loss_at, named

BUDGETS = [0.7, 0.5, 0.4, 0.3, 0.25, 0.2]
LAYERS = {"ag_news-pruned": None, "ag_news-pruned-first-4": "first-4"}


def recipe(task: dict[str, Any], layers: str | None, seed: int, quick: bool) -> Any:
    """Top-k by attention received from the class token; each step keeps another share of them.
    layers: that the routed model has; None = all."""
    made = classification.recipe(task, classification.EPOCHS["ag_news"], seed, quick)
    made["routers"] = [
        {
            "kind": "token-attention",
            "keep": "top-k",
            "received": "class",
            "visible": False,
            "hold_first": 2,
            "least": 0.1,
        }
    ]
    made["train"] |= {"routed_learning_rate": 1e-4, "routed_layers": layers}
    made["measure"]["budgets"] = BUDGETS[::2] if quick else BUDGETS
    made["measure"]["static"] = ["first-3"] if quick else ["first-2", "first-3", "first-4"]
    made["measure"]["time_examples"] = 480
    return made


def run() -> None:
    benchmark = Benchmark(
        "token_pruning", "token pruning within a point of dense at 1.9x", (0, 1, 2)
    )
    tasks = {}
    for seed in benchmark.seeds:
        files = WORK / f"{named('ag_news', seed, benchmark.quick)}-data"
        tasks[seed] = ag_news(benchmark.folder("ag_news"), files, seed, benchmark.quick)
    verdict = {}
    for name, layers in LAYERS.items():
        recipes = {
            seed: recipe(task, layers, seed, benchmark.quick) for seed, task in tasks.items()
        }
        arms_of(benchmark, name, recipes, like="ag_news")
        where = f"{layers or 'all'} layers"
        key = f"{where}: points lost to dense at 1.9x"
        verdict[key] = loss_at(benchmark, name, "accuracy", 1.9, at_most=1.0)
        for speed in (1.5, 1.9, 2.5):
            key = f"{where}: pruned minus cut at {speed:g}x"
            verdict[key] = gain_at(benchmark, name, "accuracy", speed)
    benchmark.finish(verdict)


if __name__ == "__main__":
    main(run)
