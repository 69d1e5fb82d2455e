"""Does routing between tasks help: routed experts, one shared layer, a layer a task.

Six tasks on one MiniLM, three seeds, at most 1,000 rows of each to learn from; frozen, and for the
contenders that the question is about fully fine-tuned too. All contenders have as many
parameters between backbone and heads: six experts weighed by input and task; one layer six times as
wide that all share; a layer of each task's own; shared and private experts. Beside them heads
alone, and experts drawn by the text (a hash), which says what choosing is worth. Then what tasks
give each other, pair by pair (seed 0), and a picture of who uses which expert.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common import RESULTS, Benchmark, Row, goal, main, spread
from frontier_claim import WORK, named
from tasks_here import judged, run_of, seconds_of, six_tasks

from turnout.double.picture import use_of_experts
from turnout.double.transfer import transfer

MOST = 1000  # training rows of each task
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
TRAINED = {"routed", "shared layer", "separate layers", "heads alone"}  # with both backbones


def settings(seed: int, backbone: str, quick: bool) -> dict[str, Any]:
    """What all contenders share."""
    return {
        "strategy": BACKBONES[backbone],
        "freeze_embeddings": True,
        "epochs": 1.0 if quick else 3.0,
        "learning_rate": 2e-4,
        "head_learning_rate": 2e-3,
        "router_learning_rate": 2e-3,
        "dropout": 0.0,
        "precision": "fp32" if quick else "bf16",
        "seed": seed,
        "evaluate_every": 100_000,
    }


def verdict(rows: list[Row]) -> dict[str, Row]:
    """Mean gain of routed experts over tasks, over each other contender."""
    entries: dict[str, Row] = {}
    found = [row for row in rows if "task" in row]
    seeds = sorted({row["seed"] for row in found})
    for backbone in BACKBONES:

        def mean(name: str, seed: int, backbone: str = backbone) -> float:
            key = (name, seed, backbone)
            return statistics.fmean(
                row["quality"]
                for row in found
                if (row["contender"], row["seed"], row["backbone"]) == key
            )

        here = {row["contender"] for row in found if row["backbone"] == backbone}
        for other in CONTENDERS:
            if other == "routed" or other not in here:
                continue
            gains = [mean("routed", seed) - mean(other, seed) for seed in seeds]
            entry = goal(statistics.fmean(gains), at_least=0)
            entry["over_seeds"] = spread(gains)
            entries[f"{backbone} backbone: routed minus {other}, mean of six tasks"] = entry
    return entries


def measured(benchmark: Benchmark, seed: int) -> None:
    """All contenders of a seed; the picture and the transfer matrix with seed 0."""
    folder = WORK / named("routing-helps", seed, benchmark.quick)
    most = 400 if benchmark.quick else MOST
    files = folder.with_name(f"{folder.name}-data")
    tasks = six_tasks(benchmark.folder, files, seed, benchmark.quick, most)
    for backbone in BACKBONES:
        for name, routers in CONTENDERS.items():
            if backbone == "trained" and name not in TRAINED:
                continue
            if benchmark.find(contender=name, seed=seed, backbone=backbone) is not None:
                continue
            out = folder / f"{backbone}-{name.replace(' ', '-')}"
            run = run_of(out, tasks, settings(seed, backbone, benchmark.quick), routers, **JUDGED)
            results = judged(run)
            if seed == 0 and name == "routed":
                use_of_experts(results, _picture(benchmark, backbone))
            benchmark.add(
                {
                    "contender": name,
                    "backbone": backbone,
                    "seed": seed,
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
            )
    if seed == 0 and not benchmark.quick and benchmark.find(transfer=True) is None:
        run = run_of(
            folder / "trained-routed",
            tasks,
            settings(seed, "trained", benchmark.quick),
            CONTENDERS["routed"],
        )
        benchmark.add([{"transfer": True, "seed": 0, "gains": transfer(run, progress=False)}])


def _picture(benchmark: Benchmark, backbone: str) -> Path:
    return RESULTS / f"{benchmark.path.stem}.{backbone}.svg"


def run() -> None:
    benchmark = Benchmark("routing_helps", "does routing between tasks help", (0, 1, 2))
    for seed in benchmark.seeds:
        measured(benchmark, seed)
    benchmark.finish(
        verdict(benchmark.rows), ["Not met means: that contender is better than routed experts."]
    )


if __name__ == "__main__":
    main(run)
