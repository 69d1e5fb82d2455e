"""`turnout predict`: rows in, one JSON object a row out, by the routed model at a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from turnout.errors import UserError
from turnout.execute.paths import check_paths
from turnout.execute.pool import BulkResult, predict_bulk
from turnout.run import open_run
from turnout.tasks.base import IGNORED, Task
from turnout.train.data import listed, predictions_of
from turnout.train.precision import moved


def predict(
    run: str | Path,
    source: str,
    *,
    budget: float | None = None,
    batch_tokens: int = 4096,
    trace: bool = False,
    paths: int = 1,
    device: str | None = None,
    seed: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """JSON lines for the rows of a file, or of standard input ("-", a text a line), in their order.

    budget: share of the routed work that may be spent; None = the one that the run was trained
    for. trace: adds ``layers_run``, how many layers (or parts of layers) ran for the row. paths:
    averages the probabilities of so many random paths and adds ``spread``, their largest standard
    deviation. device: as torch names it; None = the GPU where there is one. seed: repeats the
    routes of random routers; with ``paths``, of the first. say: is told the share of the work
    spent.

    Raises UserError: not a run, a budget outside 0..1, a device that is not there, paths below 1 or
    without a random router, and whatever is wrong with the file.
    """
    opened = open_run(run)
    task, model = opened.task(), moved(opened.load_routed(), device)
    routing: Any = model.turnout
    if budget is not None:
        routing.budget = budget
    routing.seed = seed
    raw = task.read(source)
    tokenizer = opened.tokenizer()
    rows = task.encode(raw, tokenizer)
    collate = task.collator(tokenizer)
    if paths == 1:
        found = task.run(model, listed(rows), collate, batch_tokens)
        found = task.joined(rows, found, len(raw))
        spread = None
    else:
        check_paths(routing, paths)
        if task.over_words:
            raise UserError("paths are averaged by their probabilities, and this task has none")
        found, spread = _averaged(
            task, model, listed(rows), collate, batch_tokens, paths, seed or 0
        )
    if say is not None:
        say(f"{len(raw):,} rows; share of the routed work that was spent: {found.share:.3f}")
    return _lines(task, raw, rows, found, spread, trace)


def _averaged(
    task: Task[Any],
    model: Any,
    rows: list[dict[str, Any]],
    collate: Any,
    batch_tokens: int,
    paths: int,
    first: int,
) -> tuple[BulkResult, list[float]]:
    """Logits of the mean probabilities of the paths with seeds first, first + 1, ..., and their
    spread by row."""
    runs = []
    for seed in range(first, first + paths):
        model.turnout.seed = seed
        runs.append(predict_bulk(model, rows, collate, batch_tokens))
    if task.probabilities(runs[0].logits[0]) is None:
        raise UserError("paths are averaged by their probabilities, and this task has none")
    each = [
        np.stack([task.probabilities(run.logits[i]) for run in runs])  # type: ignore[misc]
        for i in range(len(rows))
    ]
    logits = [task.logits_of(found.mean(0)) for found in each]
    units = np.mean([run.units for run in runs], axis=0)
    share, saved = (float(np.mean([getattr(run, n) for run in runs])) for n in ("share", "saved"))
    result = BulkResult(logits, units, runs[0].use, share, saved)
    return result, [float(found.std(0).max()) for found in each]


def _lines(
    task: Task[Any],
    raw: datasets.Dataset,
    rows: datasets.Dataset,
    found: BulkResult,
    spread: list[float] | None,
    trace: bool,
) -> Iterator[str]:
    predictions = predictions_of(task, rows, found.logits)
    same = len(rows) == len(raw)  # if not, a raw row is several encoded ones, without labels
    labels = rows["labels"] if same and "labels" in rows.column_names else [None] * len(raw)
    spreads = [None] * len(raw) if spread is None else spread
    for record, prediction, logits, marks, units, apart in zip(
        raw, predictions, found.logits, labels, found.units, spreads, strict=True
    ):
        if logits.ndim == 2:  # of all sub-tokens; those of words count
            logits = logits[np.asarray(marks) != IGNORED]
        out = task.describe(record, prediction, task.probabilities(logits))  # type: ignore[arg-type]
        if trace:
            out["layers_run"] = round(float(units), 3)
        if apart is not None:
            out["spread"] = round(apart, 4)
        yield json.dumps(finite(out), ensure_ascii=False, default=str, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not know (a kept column may hold NaN)."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
