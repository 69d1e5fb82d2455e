"""What a pass costs that answers several tasks, beside one of the plain backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from turnout.double.answers import asks_inside, padded
from turnout.double.config import TasksMeasureConfig
from turnout.double.results import PassTime
from turnout.execute.batches import Row, groups_by_length, lengths_of
from turnout.execute.mode import evaluating
from turnout.hosts.tasks_model import TasksModel
from turnout.install import uninstall
from turnout.measure.stats import ratio_interval
from turnout.measure.timing import interleaved

PLAIN = "plain"
Pass = Callable[[], None]


@dataclass(frozen=True)
class Plain:
    """A pass of the plain backbone with one head."""

    seconds: float
    gflops: float


def plain_of(model: TasksModel) -> TasksModel:
    """A copy as a model of one task would be: the backbone and heads, and nothing around it."""
    made = deepcopy(model)
    if hasattr(made, "turnout"):
        uninstall(made)
    made.bridge = made.prompt = made.case = None
    for head in made.heads.values():
        head.mix = None  # type: ignore[union-attr]
    return made.eval()


def pass_times(
    model: TasksModel,
    names: Sequence[str],
    rows: list[Row],
    tokenizer: Any,
    config: TasksMeasureConfig,
) -> tuple[list[PassTime], Plain]:
    """Passes over some texts that answer the first 1, 2, ... of the tasks, in turns with one of the
    plain backbone."""
    groups = [
        padded([rows[i] for i in group], tokenizer, model.device)
        for group in groups_by_length(lengths_of(rows), config.batch_tokens)
    ]
    arms = {PLAIN: one_pass(plain_of(model), names[:1], groups)}
    arms |= {str(n): one_pass(model, names[:n], groups) for n in range(1, len(names) + 1)}
    with evaluating(model):
        gflops = {name: _gflops(run) / max(1, len(rows)) for name, run in arms.items()}
        seconds = interleaved(arms, config.repeats)
    middle = {name: float(np.median(each)) for name, each in seconds.items()}
    found = []
    for count in range(1, len(names) + 1):
        name = str(count)
        ratio = ratio_interval(seconds[name], seconds[PLAIN])
        found.append(
            PassTime(
                tasks=count,
                ratio=ratio.value,
                low=ratio.low,
                high=ratio.high,
                seconds=middle[name],
                gflops=gflops[name],
            )
        )
    return found, Plain(middle[PLAIN], gflops[PLAIN])


def one_pass(model: TasksModel, names: Sequence[str], groups: Sequence[dict[str, Tensor]]) -> Pass:
    """Answers some tasks for all texts: one pass, or one a task where routers inside the backbone
    depend on it."""
    inside = asks_inside(model)

    @torch.inference_mode()
    def once() -> None:
        for inputs in groups:
            if not inside:
                model(**inputs, tasks=names)
                continue
            for name in names:
                place = model.tasks.index(name)
                ids = torch.full((len(inputs["input_ids"]),), place, device=model.device)
                model(**inputs, task_ids=ids)

    return once


def _gflops(run: Pass) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9
