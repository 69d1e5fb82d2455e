"""What a model is trained on: a task's encoded rows, and what a teacher says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from turnout.execute.batches import Collate
from turnout.objectives import ObjectivesConfig
from turnout.tasks.base import Task
from turnout.train.calibrate import calibrate
from turnout.train.teacher import teacher_logits

BATCH_TOKENS = 4096
CALIBRATION_ROWS, CALIBRATION_PASSES = 256, 5  # of a dial that serves one validation


@dataclass(frozen=True, eq=False)
class Data:
    """Encoded rows of one task.

    references: what the validation rows should give; None = validate by the loss. teacher: the
    dense host, for objectives on hidden states. teacher_logits: its answers for ``train``, in
    that order.
    """

    task: Task[Any]
    tokenizer: Any
    train: datasets.Dataset
    validation: datasets.Dataset
    references: Any = None
    teacher: PreTrainedModel | None = None
    teacher_logits: list[np.ndarray] | None = None

    @property
    def collate(self) -> Collate:
        """Encoded rows to a batch."""
        return self.task.collator(self.tokenizer)

    def taught_by(
        self, dense: PreTrainedModel, weights: ObjectivesConfig, folder: Path | None = None
    ) -> Data:
        """With all that the objectives ask of a teacher; its logits are computed once, here.
        folder: the teacher's own, which keeps them for the next that asks."""
        logits = None
        # a distribution over the vocabulary a token is too much to keep
        if self.task.generates or self.task.over_words:
            asked = weights.hidden or weights.distill
            return replace(self, teacher=dense if asked else None)
        if weights.distill or weights.exits:
            logits = teacher_logits(dense, listed(self.train), self.collate, folder)
        return replace(self, teacher=dense if weights.hidden else None, teacher_logits=logits)

    def rows(self) -> datasets.Dataset:
        """The training rows, with the teacher's logits as a column where there are any."""
        if self.teacher_logits is None:
            return self.train
        columns = [row.astype(np.float32).tolist() for row in self.teacher_logits]
        return self.train.add_column("teacher_logits", columns)  # type: ignore[call-arg]

    def usual_batch(self, size: int) -> dict[str, torch.Tensor]:
        """A labelled batch of training rows of middling length."""
        return self.collate(listed(usual_rows(self.train, size)))

    def judged(self, model: PreTrainedModel) -> float:
        """``score`` in the middle of a training: routers get a dial for this one use."""
        if hasattr(model, "turnout"):  # thresholds of a few steps ago would not meet the budget
            few = self.validation.select(range(min(len(self.validation), CALIBRATION_ROWS)))
            calibrate(model, listed(few), self.collate, passes=CALIBRATION_PASSES)
        return self.score(model)

    def score(self, model: PreTrainedModel) -> float:
        """The task's headline on the validation rows, at the model's current budget."""
        return self.task.score(self.total(model))

    def total(self, model: PreTrainedModel) -> np.ndarray:
        """The task's counts on the validation rows, summed."""
        result = self.task.run(model, listed(self.validation), self.collate, BATCH_TOKENS)
        found = predictions_of(self.task, self.validation, result.logits)
        return self.task.counts(found, self.references).sum(0)


def encode(
    task: Task[Any],
    raw: dict[str, datasets.Dataset],
    tokenizer: Any,
    host: PreTrainedModel | None = None,
) -> Data:
    """Encode what a task has loaded. host: what will read it, where the task has to look at it.
    Raises UserError for one that cannot do the task."""
    if host is not None:
        task.meet(host)
    train = task.encode_train(raw["train"], tokenizer)
    validation = task.encode(raw["validation"], tokenizer)
    return Data(task, tokenizer, train, validation, task.references(raw["validation"]))


def listed(rows: datasets.Dataset) -> list[dict[str, Any]]:
    """Encoded rows out of their table, which is slow to be asked row by row."""
    return [dict(row) for row in rows]  # type: ignore[call-overload]


def usual_rows(rows: datasets.Dataset, size: int) -> datasets.Dataset:
    """Rows of middling length."""
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    start = max(0, (len(lengths) - size) // 2)
    return rows.select(np.argsort(lengths)[start : start + size])


def predictions_of(task: Task[Any], rows: datasets.Dataset, logits: list[np.ndarray]) -> Any:
    """A task's predictions from the logits, or the written answers, of encoded rows."""
    if task.generates:
        return task.predictions(logits)
    if logits and logits[0].ndim == 1:
        return task.predictions(np.stack(logits))
    labels = rows["labels"]
    return [
        task.predictions(each[None], np.asarray(row)[None, : len(each)])[0]
        for each, row in zip(logits, labels, strict=True)
    ]


def with_teacher(collate: Collate) -> Collate:
    """A collator that also pads ``teacher_logits`` where the rows carry them."""

    def joined(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        if "teacher_logits" in rows[0]:
            logits = [torch.tensor(row["teacher_logits"]) for row in rows]
            batch["teacher_logits"] = nn.utils.rnn.pad_sequence(logits, batch_first=True)
        return batch

    return joined
