"""Answers of several tasks for encoded rows, from as few passes of the backbone as there can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from turnout.execute.batches import Row, groups_by_length, lengths_of
from turnout.execute.mode import evaluating
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import IGNORED, Task
from turnout.train.data import listed, predictions_of

READ = ("input_ids", "attention_mask", "token_type_ids", "case_ids")


def padded(rows: Sequence[Row], tokenizer: Any, device: Any = None) -> dict[str, Tensor]:
    """What a backbone reads of some rows, as a batch."""
    columns = {name: [row[name] for row in rows] for name in READ if name in rows[0]}
    batch = tokenizer.pad(columns, return_tensors="pt")
    return {name: value.to(device) for name, value in batch.items()}


@torch.inference_mode()
def answers(
    model: TasksModel,
    rows: Sequence[Row],
    tokenizer: Any,
    tasks: Sequence[str],
    batch_tokens: int = 4096,
) -> dict[str, list[np.ndarray]]:
    """Logits of each task for every row, (C,) or (T, C) of its real tokens: one pass of the
    backbone for all tasks. Where a router inside the backbone depends on the task there is no such
    pass: then there is one a task. A task of words has a pass of its own too: of a whole vocabulary
    only what the rows' labels ask for is kept (see ``WordsHead``)."""
    found: dict[str, list[Any]] = {name: [None] * len(rows) for name in tasks}
    words = [name for name in tasks if _kind(model, name) == "words"]
    others = [name for name in tasks if name not in words]
    together = [[name] for name in tasks] if asks_inside(model) else [[name] for name in words]
    if others and not asks_inside(model):
        together.append(others)
    with evaluating(model):
        for group in groups_by_length(lengths_of(rows), batch_tokens):
            some = [rows[i] for i in group]
            inputs = padded(some, tokenizer, model.device)
            for names in together:
                labels = _marks(some, inputs) if names[0] in words else None
                for name, logits in _logits(model, names, inputs, labels).items():
                    for place, row in zip(group, _each(logits, inputs), strict=True):
                        found[name][place] = row
    return found


def score(
    model: TasksModel,
    name: str,
    task: Task[Any],
    encoded: datasets.Dataset,
    references: Any,
    tokenizer: Any,
) -> float:
    """A task's headline on encoded, labelled rows."""
    logits = answers(model, listed(encoded), tokenizer, [name])[name]
    found = predictions_of(task, encoded, logits)
    return task.score(task.counts(found, references).sum(0))


def _kind(model: TasksModel, name: str) -> str:
    head: Any = model.heads[name]
    return head.config.kind


def _marks(rows: Sequence[Row], inputs: Mapping[str, Tensor]) -> Tensor:
    """The labels of tokens, padded."""
    ids = inputs["input_ids"]
    marks = torch.full_like(ids, IGNORED)
    for place, row in enumerate(rows):
        own = torch.as_tensor(row["labels"], device=ids.device)
        marks[place, : len(own)] = own
    return marks


def _logits(
    model: TasksModel, names: Sequence[str], inputs: Mapping[str, Tensor], labels: Tensor | None
) -> dict[str, Tensor]:
    if labels is None and not asks_inside(model):
        return model(**inputs, tasks=names).logits
    ids = torch.full((len(inputs["input_ids"]),), model.tasks.index(names[0]), device=model.device)
    return {names[0]: model(**inputs, task_ids=ids, labels=labels).logits}


def _each(logits: Tensor, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
    """The logits of each row, of its real tokens where tokens answer."""
    values = logits.float().cpu().numpy()
    if values.ndim == 2:
        return list(values)
    masks = inputs["attention_mask"].bool().cpu().numpy()
    return [value[mask] for value, mask in zip(values, masks, strict=True)]


def asks_inside(model: TasksModel) -> bool:
    """Does a router inside the backbone depend on the task that is asked for."""
    routing: Any = getattr(model, "turnout", None)
    return routing is not None and any(
        getattr(router.config, "asks_task", False) and router.config.site != "output"
        for router in routing.all_routers()
    )
