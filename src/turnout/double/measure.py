"""Measure a run of several tasks: each task's quality, and what a pass costs that answers them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from turnout.double.answers import answers, asks_inside, padded
from turnout.double.config import TasksMeasureConfig
from turnout.double.results import PassTime, TaskResult, TasksResults
from turnout.double.run import TasksRun
from turnout.double.transfer import transfer
from turnout.execute.batches import Row, groups_by_length, inputs_of, lengths_of
from turnout.execute.routing import trace
from turnout.hosts.tasks_model import TasksModel
from turnout.measure import machine
from turnout.measure.stats import bootstrap_interval, ratio_interval
from turnout.measure.timing import interleaved
from turnout.tasks.base import Task
from turnout.train.data import listed, predictions_of
from turnout.train.precision import moved

DRAWS = 1000
WATCHED = 256  # rows of a task whose routes are looked at


def measure_tasks(
    run: TasksRun,
    config: TasksMeasureConfig | None = None,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> TasksResults:
    """Measure a trained run. config: None = as its recipe says."""
    config = config or run.recipe.measure
    model, tokenizer = moved(run.load()), run.tokenizer()
    tasks, notes, found, texts = run.tasks(), [], [], []
    for name, task in tasks.items():
        splits = task.load()
        if "test" not in splits:
            notes.append(f"{name} has no test file: its validation rows are judged")
        raw = splits.get("test", splits["validation"])
        if config.max_examples is not None:
            raw = raw.select(range(min(config.max_examples, len(raw))))
        encoded = task.encode(raw, tokenizer)
        rows = listed(encoded)
        texts.append(rows)
        logits = answers(model, rows, tokenizer, [name], config.batch_tokens)[name]
        predictions, gold = predictions_of(task, encoded, logits), task.references(raw)
        counts = task.counts(predictions, gold)
        value, low, high = bootstrap_interval(counts, task.score, n=DRAWS)
        say(
            f"{name}: {task.headline} {value:.4f} ({low:.4f} to {high:.4f}) on {len(counts):,} rows"
        )
        found.append(
            TaskResult(
                name=name,
                metric=task.headline,
                rows=len(counts),
                quality=value,
                low=low,
                high=high,
                report=task.report(predictions, gold),
                use=unit_use(model, name, task, rows[:WATCHED], tokenizer),
            )
        )
    mixed = [row for each in zip_longest(*texts) for row in each if row is not None]
    backbone = sum(p.numel() for p in model.backbone.parameters())
    whole = sum(p.numel() for p in model.parameters())
    return TasksResults(
        model=run.recipe.model,
        tasks=found,
        passes=pass_times(model, mixed[: config.time_examples], tokenizer, config),
        parameters=whole,
        added=(whole - backbone) / len(tasks),
        machine=machine.describe(),
        transfer=transfer(run, say=say, progress=progress) if config.transfer else None,
        notes=notes,
    )


def pass_times(
    model: TasksModel, rows: list[Row], tokenizer: Any, config: TasksMeasureConfig
) -> list[PassTime]:
    """Time of a pass over some texts that answers 1, 2, ... of the tasks, in turns."""
    groups = [
        padded([rows[i] for i in group], tokenizer, model.device)
        for group in groups_by_length(lengths_of(rows), config.batch_tokens)
    ]
    names = model.tasks
    inside = asks_inside(model)

    def passes(count: int) -> Callable[[], None]:
        @torch.inference_mode()
        def once() -> None:
            for inputs in groups:
                if not inside:
                    model(**inputs, tasks=names[:count])
                    continue
                for place in range(count):
                    ids = torch.full((len(inputs["input_ids"]),), place, device=model.device)
                    model(**inputs, task_ids=ids)

        return once

    arms = {str(count): passes(count) for count in range(1, len(names) + 1)}
    seconds = interleaved(arms, config.repeats)
    found = []
    for count in range(1, len(names) + 1):
        ratio = ratio_interval(seconds[str(count)], seconds["1"])
        middle = float(np.median(seconds[str(count)]))
        found.append(
            PassTime(tasks=count, ratio=ratio.value, low=ratio.low, high=ratio.high, seconds=middle)
        )
    return found


@torch.inference_mode()
def unit_use(
    model: TasksModel, name: str, task: Task[Any], rows: list[Row], tokenizer: Any
) -> list[float]:
    """Mean weight of each routing layer for a task's rows; empty without such."""
    routing: Any = getattr(model, "turnout", None)
    if routing is None or all(site.kind != "output" for site in routing.sites):
        return []
    total, count = torch.zeros(()), 0.0
    collate = task.collator(tokenizer)
    for start in range(0, len(rows), 32):
        inputs = inputs_of(model, rows[start : start + 32], collate)
        ids = torch.full((len(inputs["input_ids"]),), model.tasks.index(name), device=model.device)
        with trace() as routes:
            model(**inputs, task_ids=ids)
        route = routes["output"]
        valid_BT = routes.valid_BT("output").float()
        weight_BTU = route.weight_BTU.expand(*valid_BT.shape, -1)
        total = total + (weight_BTU * valid_BT[:, :, None]).sum((0, 1)).cpu()
        count += float(valid_BT.sum())
    return (total / count).tolist()
