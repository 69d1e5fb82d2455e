"""Does routing between tasks help: routed experts, one shared layer, a layer a task.

Six tasks on one MiniLM, three seeds, at most 500 rows of each to learn from; frozen, and for the
contenders that the question is about fully fine-tuned too. All contenders have as many
parameters between backbone and heads: six experts weighed by input and task; one layer six times as
wide that all share; a layer of each task's own; shared and private experts. Beside them heads
alone, and experts drawn by the text (a hash), which says what choosing is worth. Then what tasks
give each other, pair by pair (seed 0), and a picture of who uses which expert.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from shutil import rmtree
from typing import Any

from common import RESULTS, Benchmark, Row, gain, main
from frontier_claim import WORK, named
from tasks_here import (
    Call,
    best_rates,
    judged,
    run_of,
    seconds_of,
    side_by_side,
    six_tasks,
    whole_seeds,
)

from turnout.double.picture import use_of_experts
from turnout.double.transfer import transfer
from turnout.files import read_json

MOST = 500  # training rows of each task
EXPERTS = {"kind": "mixture", "granularity": "sequence", "adapters": 6}
CONTENDERS: dict[str, list[dict[str, Any]]] = {
    "routed": [{**EXPERTS, "reads": "both", "top": 2}],
    "routed by input": [{**EXPERTS, "reads": "input", "top": 2}],
    "routed by task": [{**EXPERTS, "reads": "task", "top": 2}],
    "shared layer": [{**EXPERTS, "adapters": 1, "inner": 6 * 384}],
    "separate layers": [{**EXPERTS, "private": 1}],
    "shared and private": [{**EXPERTS, "adapters": 8, "inner": 288, "shared": 2, "private": 1}],
    "by hash": [{"kind": "random-unit", "site": "output", "adapters": 6, "top": 2}],
    "heads alone": [],
}
BACKBONES = {"frozen": "router", "trained": "full"}
JUDGED = {"measure": {"max_examples": 1000, "repeats": 3, "time_examples": 120}}
TRAINED = ("routed", "shared layer", "separate layers", "heads alone")  # with both backbones


RATES = (1e-3, 3e-3, 1e-2)  # of what is new; a backbone that learns has a rate of its own


def settings(seed: int, backbone: str, quick: bool, rate: float) -> dict[str, Any]:
    """What all contenders share."""
    return {
        "strategy": BACKBONES[backbone],
        "freeze_embeddings": True,
        "epochs": 1.0 if quick else 3.0,
        "learning_rate": 2e-4,
        "head_learning_rate": rate,
        "router_learning_rate": rate,
        "dropout": 0.0,
        "precision": "fp32" if quick else "bf16",
        "seed": seed,
        "evaluate_every": 100_000,
    }


def verdict(rows: list[Row]) -> dict[str, Row]:
    """Mean gain of routed experts over tasks, over each other contender."""
    entries: dict[str, Row] = {}
    for backbone in BACKBONES:
        here = [row for row in rows if row.get("backbone") == backbone]
        for other in CONTENDERS:
            seeds = whole_seeds(here, {"routed", other})
            if other == "routed" or not seeds:
                continue
            gains = [_mean(here, "routed", seed) - _mean(here, other, seed) for seed in seeds]
            entries[f"{backbone} backbone: routed minus {other}, mean of six tasks"] = gain(gains)
    return entries


def _mean(rows: list[Row], name: str, seed: int) -> float:
    found = [row for row in rows if (row["contender"], row["seed"]) == (name, seed)]
    return statistics.fmean(row["quality"] for row in found)


def tasks_of(benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """The six, with few rows to learn from."""
    files = WORK / f"{named('routing-helps', seed, benchmark.quick)}-data"
    most = 400 if benchmark.quick else MOST
    return six_tasks(benchmark.folder, files, seed, benchmark.quick, most)


def rates_of(benchmark: Benchmark) -> dict[str, float]:
    """The rate of each contender before the frozen backbone, by the validation rows of seed 0."""
    folder = WORK / named("routing-helps-tuning", 0, benchmark.quick)
    tasks = tasks_of(benchmark, 0)

    def trained(name: str, rate: float) -> Call:
        out = folder / f"{name.replace(' ', '-')}-{rate:g}"
        return (
            run_of,
            out,
            tasks,
            settings(0, "frozen", benchmark.quick, rate),
            CONTENDERS[name],
        )

    return best_rates(benchmark, dict.fromkeys(CONTENDERS, RATES), trained)


def rows_of(
    name: str,
    backbone: str,
    tasks: dict[str, dict[str, Any]],
    fields: dict[str, Any],
    out: Path,
    picture: Path | None,
) -> list[Row]:
    """A row a task of one contender. picture: where to draw who uses which expert."""
    run = run_of(out, tasks, fields, CONTENDERS[name], JUDGED)
    results = judged(run)
    if picture is not None:
        use_of_experts(results, picture)
    shared = {"contender": name, "backbone": backbone, "seed": fields["seed"]}
    rows = [
        {
            **shared,
            "rate": fields["router_learning_rate"],
            "task": each.name,
            "metric": each.metric,
            "quality": each.quality,
            "low": each.low,
            "high": each.high,
            "use": each.use,
            "parameters": results.parameters,
            "training_seconds": seconds_of(run),
        }
        for each in results.tasks
    ]
    rmtree(run.path)
    return rows


def measured(benchmark: Benchmark, rates: dict[str, float]) -> None:
    """All contenders of all seeds, and the pictures with seed 0."""
    calls: list[Call] = []
    for seed in benchmark.seeds:
        folder, tasks = (
            WORK / named("routing-helps", seed, benchmark.quick),
            tasks_of(benchmark, seed),
        )
        for backbone in BACKBONES:
            for name in CONTENDERS if backbone == "frozen" else TRAINED:
                if benchmark.find(contender=name, seed=seed, backbone=backbone) is not None:
                    continue
                fields = settings(seed, backbone, benchmark.quick, rates[name])
                out = folder / f"{backbone}-{name.replace(' ', '-')}"
                drawn = seed == 0 and name == "routed"
                picture = _picture(benchmark, backbone) if drawn else None
                calls.append((rows_of, name, backbone, tasks, fields, out, picture))
    side_by_side(benchmark, calls)


def alone(name: str, task: dict[str, Any], fields: dict[str, Any], out: Path) -> list[Row]:
    """What a task reaches by itself, on validation rows."""
    run = run_of(out, {name: task}, fields, CONTENDERS["routed"])
    score = read_json(run.path / "training.json")["validation"][name]
    rmtree(out)
    return [{"alone": name, "seed": fields["seed"], "validation": score}]


def given(benchmark: Benchmark, rate: float) -> None:
    """The transfer matrix of the first seed, and how far the scores of each task alone lie apart
    over seeds: cells within that say nothing."""
    calls: list[Call] = []
    for seed in benchmark.seeds:
        tasks = tasks_of(benchmark, seed)
        fields = settings(seed, "trained", benchmark.quick, rate)
        folder = WORK / named("routing-helps-transfer", seed, benchmark.quick)
        if seed == benchmark.seeds[0] and benchmark.find(transfer=True) is None:
            calls.append((matrix, tasks, fields, folder))
        for name, task in tasks.items():
            if benchmark.find(alone=name, seed=seed) is None:
                out = folder.with_name(f"{folder.name}-{name}")
                calls.append((alone, name, task, fields, out))
    side_by_side(benchmark, calls)


def matrix(tasks: dict[str, dict[str, Any]], fields: dict[str, Any], out: Path) -> list[Row]:
    """What each task gains from each other."""
    gains = transfer(run_of(out, tasks, fields, CONTENDERS["routed"]), progress=False)
    rmtree(out)
    return [{"transfer": True, "seed": fields["seed"], "gains": gains}]


def _picture(benchmark: Benchmark, backbone: str) -> Path:
    return RESULTS / f"{benchmark.path.stem}.{backbone}.svg"


def run() -> None:
    benchmark = Benchmark("routing_helps", "does routing between tasks help", (0, 1, 2))
    rates = rates_of(benchmark)
    measured(benchmark, rates)
    if not benchmark.quick:
        given(benchmark, rates["routed"])
    benchmark.finish(
        verdict(benchmark.rows),
        [
            "Met: the whole interval over seeds is above 0; entries that are not decided say so.",
            "Learning rates: the best of each contender on validation rows (seed 0, frozen).",
            "A pair of tasks trains its backbone twice as often as a task alone does.",
        ],
    )


if __name__ == "__main__":
    main(run)
