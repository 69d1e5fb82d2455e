"""`turnout predict`: rows in, one JSON object a row out, by the routed model at a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from turnout.execute.pool import BulkResult, predict_bulk
from turnout.run import open_run
from turnout.tasks.base import IGNORED, Task
from turnout.train.fit import listed, predictions_of


def predict(
    run: str | Path,
    source: str,
    *,
    budget: float | None = None,
    batch_tokens: int = 4096,
    trace: bool = False,
) -> Iterator[str]:
    """JSON lines for the rows of a file, or of standard input ("-", a text a line), in their order.

    budget: share of the routed work that may be spent; None = the one that the run was trained
    for. trace: adds ``layers_run``, how many layers (or parts of layers) ran for the row. Raises
    UserError: not a run, a budget outside 0..1, and whatever is wrong with the file.
    """
    opened = open_run(run)
    task, model = opened.task(), opened.load_routed()
    routing: Any = model.turnout
    if budget is not None:
        routing.budget = budget
    raw = task.read(source)
    tokenizer = opened.tokenizer()
    rows = task.encode(raw, tokenizer)
    found = predict_bulk(model, listed(rows), task.collator(tokenizer), batch_tokens)
    return _lines(task, raw, rows, found, trace)


def _lines(
    task: Task[Any], raw: datasets.Dataset, rows: datasets.Dataset, found: BulkResult, trace: bool
) -> Iterator[str]:
    predictions = predictions_of(task, rows, found.logits)
    labels = rows["labels"] if "labels" in rows.column_names else [None] * len(rows)
    for record, prediction, logits, marks, units in zip(
        raw, predictions, found.logits, labels, found.units, strict=True
    ):
        if logits.ndim == 2:  # of all sub-tokens; those of words count
            logits = logits[np.asarray(marks) != IGNORED]
        out = task.describe(record, prediction, _softmax(logits))  # type: ignore[arg-type]
        if trace:
            out["layers_run"] = round(float(units), 3)
        yield json.dumps(out, ensure_ascii=False)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
