"""`turnout predict` with a run of several tasks: every task's answer for each row, a JSON line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turnout.double.answers import answers
from turnout.double.run import open_tasks_run
from turnout.errors import UserError
from turnout.predict import finite
from turnout.tasks.base import IGNORED, Task
from turnout.train.data import listed
from turnout.train.precision import moved


def predict_tasks(
    run: str | Path,
    source: str,
    *,
    tasks: Sequence[str] | None = None,
    budget: float | None = None,
    batch_tokens: int = 4096,
    device: str | None = None,
) -> Iterator[str]:
    """JSON lines for the rows of a file, or of standard input ("-", a text a line), in their order:
    the row, and by task what it answers.

    tasks: some of the run's; None = all. Tasks that read a row as the same tokens share one pass of
    the backbone. Raises UserError: not a run, an unknown task, and whatever is wrong with the file.
    """
    opened = open_tasks_run(run)
    every = opened.tasks()
    for name in tasks or ():
        if name not in every:
            raise UserError(f"{run} has no task {name!r}; its tasks are {', '.join(every)}")
    chosen = {name: every[name] for name in tasks or every}
    model, tokenizer = moved(opened.load(), device), opened.tokenizer()
    if budget is not None:
        if not hasattr(model, "turnout"):
            raise UserError(f"{run} has no routers: there is no budget to set")
        model.turnout.budget = budget
    raw = {name: task.read(source) for name, task in chosen.items()}
    encoded = {name: task.encode(raw[name], tokenizer) for name, task in chosen.items()}
    logits: dict[str, list[np.ndarray]] = {}
    words = [name for name, task in chosen.items() if task.head.kind == "words"]
    ids = {name: rows["input_ids"] for name, rows in encoded.items() if name not in words}
    for names in [*alike(ids), *([name] for name in words)]:  # words say where they are asked for
        rows = listed(encoded[names[0]])
        logits |= answers(model, rows, tokenizer, names, batch_tokens)
    for place in range(len(next(iter(raw.values())))):
        out: dict[str, Any] = {}
        for name, task in chosen.items():
            marks = encoded[name][place].get("labels")
            out[name] = _described(task, raw[name][place], logits[name][place], marks)
        yield json.dumps(finite(out), ensure_ascii=False, default=str, allow_nan=False)


def alike(ids: dict[str, Any]) -> list[list[str]]:
    """Tasks in groups that read all rows as the same tokens."""
    groups: list[list[str]] = []
    for name, rows in ids.items():
        for group in groups:
            if list(ids[group[0]]) == list(rows):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _described(task: Task[Any], record: Any, logits: np.ndarray, marks: Any) -> dict[str, Any]:
    """What one task says of one row."""
    if logits.ndim == 2:
        marks = np.asarray(marks)
        prediction = task.predictions(logits[None], marks[None])[0]
        logits = logits[marks != IGNORED]
    else:
        prediction = task.predictions(logits[None])[0]
    return task.describe(record, prediction, task.probabilities(logits))
