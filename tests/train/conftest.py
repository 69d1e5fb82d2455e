from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from transformers import BertForSequenceClassification, PreTrainedModel

from turnout.objectives import ObjectivesConfig
from turnout.tasks import ClassificationConfig, ClassificationTask
from turnout.train.config import TrainConfig
from turnout.train.data import Data
from turnout.train.fit import fit
from turnout.train.trainer import RoutedTrainer


class Work:
    """Reviews on disk, a task that has read them, and a fresh tiny BERT each time."""

    def __init__(self, folder: Path) -> None:
        paths = {name: str(path) for name, path in tiny.save_reviews(folder).items()}
        self.folder, self.tokenizer = folder, tiny.tokenizer()
        self.task = ClassificationTask(ClassificationConfig(**paths, max_length=16))
        self.raw = self.task.load()
        self.rows = {name: self.encode(split) for name, split in self.raw.items()}
        self.collate = self.task.collator(self.tokenizer)

    def encode(self, split: datasets.Dataset) -> datasets.Dataset:
        return self.task.encode(split, self.tokenizer)

    def model(self) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return BertForSequenceClassification(tiny.bert_config(num_labels=2)).eval()

    def fit(self, model: PreTrainedModel, out: str = "out", **settings: Any) -> RoutedTrainer:
        """Train with the settings of a TrainConfig; ``weights`` and those of fit go their way."""
        own = {name: settings.pop(name) for name in [*settings] if name in FIT}
        plain: dict[str, Any] = dict(batch_size=8, precision="fp32", dropout=0.0, epochs=1)
        weights = own.pop("weights", ObjectivesConfig())
        told = {"say": own.pop("say")} if "say" in own else {}
        rows = {"train": self.rows["train"], "validation": self.rows["validation"], **own}
        data = Data(self.task, self.tokenizer, **rows)
        return fit(
            model,
            data,
            TrainConfig(**{**plain, **settings}),
            weights,
            self.folder / out,
            progress=False,
            **told,
        )


FIT = ("train", "weights", "teacher", "teacher_logits", "references", "say")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)
