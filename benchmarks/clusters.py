"""An adapter a cluster of inputs, against one of the same active, and of the same total size.

A mixture of four data sets (topics, sentiment, kinds of questions, financial sentiment) with the
labels of all. The host and its head are the same for all arms: MiniLM as it was pretrained, frozen,
with LoRA units (at queries, values and the first feed-forward matrix) and a new head that learn.
Four units of rank 8, one of which serves an input by the nearest of four k-means centres, or two by
their distance; one of four, where the units learn as one for the first half of the steps (the seed
phase of branch-train-merge); one unit of rank 8; one unit of rank 32; and four units of which a
hash of the text picks one, which is routing without knowledge.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Benchmark, Row, goal, main, workers_for
from datasets_here import MIXTURE, mixture
from frontier_claim import WORK, named
from trained import Study, study
from transformers import set_seed

import turnout
from turnout.objectives import ObjectivesConfig
from turnout.routers.cluster import ClusterRouter
from turnout.train.config import TrainConfig
from turnout.train.fit import fit
from turnout.train.prepare import pooled_states, prepare
from turnout.workers import in_processes

UNITS, RANK, SEED_PHASE = 4, 8, 0.5
SEEDED = "clusters, after a seed phase"
LORA: dict[str, Any] = {"site": "adapter", "form": "lora", "targets": ["query", "value", "in"]}
ARMS: dict[str, dict[str, Any]] = {
    "clusters": {"adapters": UNITS, "rank": RANK},
    "clusters, two serve": {"adapters": UNITS, "rank": RANK, "top": 2},
    SEEDED: {"adapters": UNITS, "rank": RANK},
    "by hash": {"kind": "random-unit", "adapters": UNITS, "rank": RANK},
    "one, same active size": {"adapters": 1, "rank": RANK},
    "one, same total size": {"adapters": 1, "rank": UNITS * RANK},
}


def domains(made: Study, split: str) -> np.ndarray:
    """Which data set each row of a split is of."""
    labels = made.task.references(made.raw[split])
    return np.array([made.task.labels[label].split(":")[0] for label in labels])


def calls(benchmark: Benchmark) -> Iterator[tuple[Any, ...]]:
    """Every arm of every seed that was not measured yet."""
    for seed in benchmark.seeds:
        missing = [arm for arm in ARMS if benchmark.find(seed=seed, arm=arm) is None]
        if not missing:
            continue
        name = named("clusters", seed, benchmark.quick)
        fields = mixture(benchmark.folder, WORK / f"{name}-data", seed, benchmark.quick)
        config = TrainConfig(
            epochs=1.0 if benchmark.quick else 2.0,
            learning_rate=1e-3,
            router_learning_rate=1e-3,
            dropout=0.0,
            freeze="blocks",
            seed=seed,
        )
        for arm in missing:
            share = SEED_PHASE if arm == SEEDED else 0.0
            own = config.model_copy(update={"seed_phase": share})
            yield measure_arm, arm, fields, own, WORK / name / arm


def measure_arm(arm: str, fields: dict[str, Any], config: TrainConfig, steps: Path) -> Row:
    """Train and judge one arm."""
    set_seed(config.seed)
    made, model = study(fields)
    turnout.install(model, [{"kind": "cluster", **LORA, **ARMS[arm]}])
    (router,) = model.turnout.all_routers()
    prepare(model, made.data.train, made.data.collate)
    shutil.rmtree(steps, ignore_errors=True)
    fit(model, made.data, config, ObjectivesConfig(), steps, title=arm)
    shutil.rmtree(steps, ignore_errors=True)
    right = made.right(model.eval())
    where = domains(made, "test")
    found = {domain: float(right[where == domain].mean()) for domain in MIXTURE}
    trained = sum(p.numel() for p in model.turnout.units.parameters())
    return {
        "seed": config.seed,
        "arm": arm,
        "accuracy": statistics.fmean(found.values()),
        **{f"accuracy_{domain}": value for domain, value in found.items()},
        "adapter_parameters": trained,
        "adapter_parameters_active": trained * ARMS[arm].get("top", 1) // ARMS[arm]["adapters"],
        "purity": purity(router, made, model) if isinstance(router, ClusterRouter) else None,
    }


def purity(router: ClusterRouter, made: Study, model: Any) -> float:
    """Share of the training rows that are of the commonest data set of their cluster."""
    pooled = torch.from_numpy(pooled_states(model, router, made.data.train, made.data.collate))
    cluster = router.weight_BU(pooled).argmax(-1).numpy()
    where = domains(made, "train")
    common = [max((where[cluster == c] == d).sum() for d in MIXTURE) for c in set(cluster)]
    return float(sum(common) / len(where))


def run() -> None:
    benchmark = Benchmark("clusters", "does an adapter a cluster beat one adapter", (0, 1, 2))
    missing = list(calls(benchmark))
    for row in in_processes(missing, workers_for(missing)):
        benchmark.add([row])

    def accuracy(seed: int, arm: str) -> float:
        return next(r["accuracy"] for r in benchmark.rows if (r["seed"], r["arm"]) == (seed, arm))

    def gain(arm: str, other: str) -> dict[str, Any]:
        seeds = sorted({r["seed"] for r in benchmark.rows})
        by_seed = [accuracy(seed, arm) - accuracy(seed, other) for seed in seeds]
        spread = {"low": min(by_seed), "high": max(by_seed), "seeds": len(by_seed)}
        return {**goal(statistics.fmean(by_seed), at_least=0.0), "over_seeds": spread}

    pairs = [(arm, other) for arm in ("clusters", SEEDED) for other in ARMS if other != arm]
    benchmark.finish({f"accuracy, {a} minus {other}": gain(a, other) for a, other in pairs})


if __name__ == "__main__":
    main(run)
