"""Measure a run of several tasks: each task's quality, and what a pass costs that answers them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from turnout.double.answers import answers
from turnout.double.config import TasksMeasureConfig
from turnout.double.passes import pass_times
from turnout.double.results import TaskResult, TasksResults
from turnout.double.run import TasksRun
from turnout.double.transfer import transfer
from turnout.execute.batches import Row, inputs_of
from turnout.execute.routing import trace
from turnout.hosts.tasks_model import TasksModel
from turnout.measure import machine
from turnout.measure.stats import bootstrap_interval
from turnout.tasks.base import IGNORED, Task
from turnout.train.data import listed, predictions_of
from turnout.train.precision import moved

DRAWS = 1000
SELDOM = 0.005
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
            order = np.random.default_rng(0).permutation(len(raw))
            raw = raw.select(np.sort(order[: config.max_examples]))
        encoded = task.encode(raw, tokenizer)
        rows: list[Row] = list(listed(encoded))
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
    notes += unused(found)
    inside: Any = model.backbone
    backbone = sum(p.numel() for p in inside.parameters())
    whole = sum(p.numel() for p in model.parameters())
    timed = [name for name, task in tasks.items() if task.head.kind != "words"]
    if len(timed) < len(tasks):
        notes.append("tasks of words are not timed: they ask for a vocabulary at few places")
    passes, plain = pass_times(model, timed, mixed[: config.time_examples], tokenizer, config)
    return TasksResults(
        model=run.recipe.model,
        tasks=found,
        passes=passes,
        plain_seconds=plain.seconds,
        plain_gflops=plain.gflops,
        parameters=whole,
        added=whole - backbone,
        machine=machine.describe(),
        transfer=transfer(run, say=say, progress=progress) if config.transfer else None,
        notes=notes,
    )


@torch.inference_mode()
def unit_use(
    model: TasksModel, name: str, task: Task[Any], rows: list[Row], tokenizer: Any
) -> list[float]:
    """Mean weight of each routing layer for a task's rows; empty without such."""
    routing: Any = getattr(model, "turnout", None)
    if routing is None or all(site.kind != "output" for site in routing.sites):
        return []
    total, count, words = torch.zeros(()), 0.0, task.head.kind == "words"
    collate = task.collator(tokenizer)
    for start in range(0, len(rows), 32):
        inputs = inputs_of(model, rows[start : start + 32], collate)
        ids = torch.full((len(inputs["input_ids"]),), model.tasks.index(name), device=model.device)
        # of a head of words nothing is asked, or it would compute a vocabulary for every token
        nothing = torch.full_like(inputs["input_ids"], IGNORED) if words else None
        with trace() as routes:
            model(**inputs, task_ids=ids, labels=nothing)
        route = routes["output"]
        valid_BT = routes.valid_BT("output").float()
        weight_BTU = route.weight_BTU.expand(*valid_BT.shape, -1)
        total = total + (weight_BTU * valid_BT[:, :, None]).sum((0, 1)).cpu()
        count += float(valid_BT.sum())
    return (total / count).tolist()


def unused(found: list[TaskResult]) -> list[str]:
    """What to say of routing layers that no task uses."""
    uses = [result.use for result in found if result.use]
    idle = [unit for unit, each in enumerate(zip(*uses, strict=True)) if max(each) < SELDOM]
    names = ", ".join(str(unit) for unit in idle)
    return [f"routing layers {names} (of {len(uses[0])}) are used by no task"] if idle else []
