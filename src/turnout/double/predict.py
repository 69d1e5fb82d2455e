"""`turnout predict` with a run of several tasks: every task's answer for each row, a JSON line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np

from turnout.double.answers import READ, answers
from turnout.double.run import open_tasks_run
from turnout.double.shelf import shelf_of
from turnout.errors import UserError
from turnout.predict import finite
from turnout.tasks import RankingTask
from turnout.tasks.base import IGNORED, Task
from turnout.tasks.text import STDIN
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
    candidates: str | None = None,
) -> Iterator[str]:
    """JSON lines for the rows of a file, or of standard input ("-", a text a line), in their order:
    the row, and by task what it answers.

    tasks: some of the run's; None = all. candidates: a file with a text a line, which tasks of
    ranking choose from; None = the answers that they were trained with. Tasks that read a row as
    the same tokens share one pass of the backbone. Raises UserError: not a run, an unknown task,
    and whatever is wrong with the file.
    """
    opened = open_tasks_run(run)
    every = opened.tasks()
    for name in tasks or ():
        if name not in every:
            raise UserError(f"{run} has no task {name!r}; its tasks are {', '.join(every)}")
    chosen = {name: every[name] for name in tasks or every}
    model, tokenizer = moved(opened.load(), device), opened.tokenizer()
    if budget is not None:
        routing: Any = getattr(model, "turnout", None)
        if routing is None:
            raise UserError(f"{run} has no routers: there is no budget to set")
        routing.budget = budget
    with as_file(source) as file:
        raw = {name: task.read(file) for name, task in chosen.items()}
    counts = {name: len(rows) for name, rows in raw.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"{source}: the tasks do not read the same rows in it ({said}): use --tasks"
        )
    encoded = {name: task.encode(raw[name], tokenizer) for name, task in chosen.items()}
    logits: dict[str, list[np.ndarray]] = {}
    words = [name for name, task in chosen.items() if task.head.kind == "words"]
    read = {name: inputs_read(rows) for name, rows in encoded.items() if name not in words}
    for names in [*alike(read), *([name] for name in words)]:  # words say where they are asked for
        rows = listed(encoded[names[0]])
        logits |= answers(model, rows, tokenizer, names, batch_tokens)
    shelves = {
        name: shelf_of(model, name, task, tokenizer, candidates, batch_tokens)
        for name, task in chosen.items()
        if isinstance(task, RankingTask)
    }
    if candidates is not None and not shelves:
        raise UserError("candidates are for tasks of ranking, of which there is none here")
    for place in range(len(next(iter(raw.values())))):
        out: dict[str, Any] = {}
        for name, task in chosen.items():
            if name in shelves:
                found = shelves[name].best(logits[name][place])
                out[name] = {**raw[name][place], "prediction": found[0]["text"], "best": found}
                continue
            marks = encoded[name][place].get("labels")
            out[name] = _described(task, raw[name][place], logits[name][place], marks)
        yield json.dumps(finite(out), ensure_ascii=False, default=str, allow_nan=False)


@contextmanager
def as_file(source: str) -> Iterator[str]:
    """A file that several tasks can read: standard input ("-") is spooled to a text file."""
    if source != STDIN:
        yield source
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input.txt"
        path.write_bytes(sys.stdin.buffer.read())
        yield str(path)


def inputs_read(rows: datasets.Dataset) -> list[tuple[Any, ...]]:
    """What a backbone reads of some rows."""
    names = [name for name in READ if name in rows.column_names]
    return list(zip(*(rows[name] for name in names), strict=True))


def alike(read: Mapping[str, list[tuple[Any, ...]]]) -> list[list[str]]:
    """Tasks in groups that read all rows alike."""
    groups: list[list[str]] = []
    for name, rows in read.items():
        for group in groups:
            if read[group[0]] == rows:
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
