"""Texts that stand ready to be found: for a task of ranking, those that lie nearest to a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from turnout.double.answers import answers
from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import Task
from turnout.tasks.text import read_lines

BEST = 3


@dataclass(frozen=True)
class Shelf:
    """Texts and their vectors, (N, width), of length 1."""

    texts: list[str]
    vectors: np.ndarray

    def best(self, vector: np.ndarray, count: int = BEST) -> list[dict[str, Any]]:
        """The nearest texts and how near they are (inner product), nearest first."""
        close = self.vectors @ np.asarray(vector, dtype=np.float32)
        order = np.argsort(-close, kind="stable")[:count]
        return [{"text": self.texts[n], "score": round(float(close[n]), 4)} for n in order]


def shelf_of(
    model: TasksModel,
    name: str,
    task: Task[Any],
    tokenizer: Any,
    candidates: str | None,
    batch_tokens: int = 4096,
) -> Shelf:
    """Of the lines of a file; None = of the answers that the task was trained with. Raises
    UserError for a file that is not there or empty."""
    if candidates is not None:
        lines = [line for line in read_lines(candidates) if line.strip()]
    else:
        try:
            lines = list(task.load()["train"][task.config.label])
        except UserError as error:
            raise UserError(
                f"task {name!r} answers with the texts that it was trained with, and {error}; name "
                "others by --candidates"
            ) from None
    texts = list(dict.fromkeys(lines))
    encoded = tokenizer(texts, truncation=True, max_length=task.config.max_length)
    rows = [{key: encoded[key][place] for key in encoded} for place in range(len(texts))]
    return Shelf(texts, np.stack(answers(model, rows, tokenizer, [name], batch_tokens)[name]))
