"""Ways of fine-tuning at 100, 1,000 and all examples: quality, what is trained, and what it takes.

SST-2 and financial_phrasebank, MiniLM, three seeds. Every strategy has the learning rate that did
best for it on validation rows of SST-2 at 1,000 examples (seed 0): of three that are usual for it,
and of a further one where the best lies at an end.
Steps are the same for all strategies at a size: 20 passes over 100 examples, 3 over 1,000, 1 over
all of them.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from shutil import rmtree
from typing import Any

from common import Benchmark, Row, main, spread
from datasets_here import financial_phrasebank, sst2
from frontier_claim import WORK, named
from tasks_here import Call, best_rates, judged, run_of, seconds_of, side_by_side

from turnout.files import read_json

READERS = {"sst2": sst2, "financial_phrasebank": financial_phrasebank}
SIZES: tuple[int | None, ...] = (100, 1000, None)
EPOCHS = {100: 20.0, 1000: 3.0, None: 1.0}
BACKBONE, NEW = (1e-4, 3e-4, 1e-3), (3e-3, 1e-2, 3e-2)
LEARNING = {"full", "partial", "discriminative", "lora"}  # change what is pretrained
LAYER = {"kind": "mixture", "adapters": 4, "top": 2}
QUALITY = {"measure": {"repeats": 2, "time_examples": 32}}  # the time of a pass is not asked here
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"strategy": "full"},
    "partial": {"strategy": "partial", "blocks": 2},
    "head": {"strategy": "head"},
    "discriminative": {"strategy": "discriminative"},
    "lora": {"strategy": "lora"},
    "prompt": {"strategy": "prompt"},
    "p-tuning": {"strategy": "p-tuning"},
    "prefix": {"strategy": "prefix"},
    "router": {"strategy": "router", "routers": [LAYER]},
}


def settings(name: str, rate: float, size: int | None, seed: int, quick: bool) -> dict[str, Any]:
    """Of one training. What is new (heads, prompts, routing layers) learns at ten times the rate of
    the backbone where both learn; alone it has the rate itself."""
    fields = {k: v for k, v in STRATEGIES[name].items() if k != "routers"}
    alone = name in ("head", "prompt", "p-tuning", "prefix", "router")
    return {
        **fields,
        "epochs": 1.0 if quick else EPOCHS[size],
        "learning_rate": rate,
        "head_learning_rate": rate if alone else 10 * rate,
        "router_learning_rate": rate if alone else 10 * rate,
        "freeze_embeddings": True,
        "dropout": 0.0,
        "precision": "fp32" if quick else "bf16",
        "seed": seed,
        "evaluate_every": 100_000,
    }


def rates_of(benchmark: Benchmark) -> dict[str, float]:
    """The learning rate of each strategy."""
    folder = WORK / named("strategies", 0, benchmark.quick)
    task = {**task_of(benchmark, "sst2", 0), "max_train": 1000}

    def trained(name: str, rate: float) -> Call:
        fields = settings(name, rate, 1000, 0, benchmark.quick)
        routers = STRATEGIES[name].get("routers", ())
        return (run_of, folder / f"tuning-{name}-{rate:g}", {"sst2": task}, fields, routers)

    rates = {
        name: BACKBONE if fields["strategy"] in LEARNING else NEW
        for name, fields in STRATEGIES.items()
    }
    return best_rates(benchmark, rates, trained)


def task_of(benchmark: Benchmark, data: str, seed: int) -> dict[str, Any]:
    """A data set, with the split of a seed."""
    files = WORK / f"{named('strategies', seed, benchmark.quick)}-data-{data}"
    return READERS[data](benchmark.folder(data), files, seed, benchmark.quick)


def rows_of(
    name: str, data: str, task: dict[str, Any], size: int | None, fields: dict[str, Any], out: Path
) -> list[Row]:
    """One strategy on one data set at one size."""
    task = task if size is None else {**task, "max_train": size}
    run = run_of(out, {data: task}, fields, STRATEGIES[name].get("routers", ()), QUALITY)
    (found,) = judged(run).tasks
    row = {
        "strategy": name,
        "data": data,
        "size": size,
        "seed": fields["seed"],
        "quality": found.quality,
        "low": found.low,
        "high": found.high,
        "rate": fields["learning_rate"],
        "trained_parameters": read_json(run.path / "training.json")["trained_parameters"],
        "training_seconds": seconds_of(run),
    }
    rmtree(run.path)  # 160 models would fill a disk
    return [row]


def verdict(rows: list[Row]) -> dict[str, Row]:
    """The best strategy for each data set and size."""
    entries: dict[str, Row] = {}
    judged_rows = [row for row in rows if "strategy" in row]
    for data, size in dict.fromkeys((row["data"], row["size"]) for row in judged_rows):
        means: dict[str, float] = {}
        each: dict[str, Row] = {}
        for name in STRATEGIES:
            values = [
                row["quality"]
                for row in judged_rows
                if (row["strategy"], row["data"], row["size"]) == (name, data, size)
            ]
            if values:
                means[name], each[name] = statistics.fmean(values), spread(values)
        best = max(means, key=lambda name: means[name])
        entries[f"{data}, {size or 'all'} examples: best is {best}"] = {
            "value": means[best],
            "goal": "a table, no goal",
            "met": True,
            "means": means,
            "over_seeds": each,
        }
    return entries


def run() -> None:
    benchmark = Benchmark("strategies", "ways of fine-tuning, by the number of examples", (0, 1, 2))
    rates, calls = rates_of(benchmark), []
    for seed in benchmark.seeds:
        for data in READERS:
            task = task_of(benchmark, data, seed)
            for size in SIZES[:2] if benchmark.quick else SIZES:
                for name in STRATEGIES:
                    key = {"strategy": name, "data": data, "size": size, "seed": seed}
                    if benchmark.find(**key) is None:
                        fields = settings(name, rates[name], size, seed, benchmark.quick)
                        folder = WORK / named("strategies", seed, benchmark.quick)
                        out = folder / f"{name}-{data}-{size or 'all'}"
                        calls.append((rows_of, name, data, task, size, fields, out))
    side_by_side(benchmark, calls)
    benchmark.finish(
        verdict(benchmark.rows),
        ["Trainings ran side by side, a core each: their seconds are of one core."],
    )


if __name__ == "__main__":
    main(run)
