"""What routers of several tasks need before training, and the dial after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import datasets
import numpy as np
from torch import Tensor, tensor

from turnout.double.answers import READ, padded
from turnout.double.data import TasksData, asking
from turnout.double.recipe import TasksRecipe
from turnout.errors import UserError
from turnout.execute.batches import Row
from turnout.hosts.tasks_model import TasksModel
from turnout.routers.base import Router, RouterConfig
from turnout.routers.cluster import ClusterConfig
from turnout.routers.policy import PolicyConfig
from turnout.routers.q_learning import QLearningConfig
from turnout.routers.random_jump import RandomJumpConfig
from turnout.train.calibrate import calibrate
from turnout.train.data import CALIBRATION_ROWS, listed
from turnout.train.prepare import (
    MOST,
    Source,
    check_data,
    check_stacks,
    pooled_states,
    prepare_from,
)


def check_routers(recipe: TasksRecipe) -> None:
    """Raise UserError for what is looked for in the rows of one task only, and for routers whose
    reward is a right answer where a task has none."""
    for config in recipe.routers:
        if _learns_by_answers(config):
            for name, task in recipe.tasks.items():
                if task.kind not in ("classification", "ner"):
                    raise UserError(
                        f"router {config.kind!r} learns from right and wrong answers, and task "
                        f"{name!r} ({task.kind}) has none: it serves classification and ner"
                    )
        if isinstance(config, PolicyConfig) and config.imitate:
            raise UserError("policy with imitate: its search is for recipes of one task")
        if isinstance(config, ClusterConfig) and config.most is not None:
            raise UserError("cluster with most: for several tasks give their number as adapters")


def _learns_by_answers(config: RouterConfig) -> bool:
    learned = isinstance(config, RandomJumpConfig) and config.distribution == "learned"
    return learned or isinstance(config, PolicyConfig | QLearningConfig)


def prepare_tasks(model: TasksModel, mixed: TasksData, say: Callable[[str], None]) -> None:
    """``turnout.prepare`` with the training rows of all tasks."""
    if not hasattr(model, "turnout"):
        return
    routing: Any = model.turnout
    configs = [router.config for router in routing.all_routers()]
    check_data(configs, sum(len(data.train) for data in mixed.each.values()))
    check_stacks(model)

    def batches() -> Iterator[dict[str, Tensor]]:
        rows = mixed.rows()
        for place in islice(range(len(rows)), -(-MOST // mixed.batch_size)):
            yield mixed.collate([rows[place]])

    def usual() -> dict[str, Any]:
        batch = mixed.usual_batch(1)
        return {key: value.to(model.device) for key, value in batch.items() if key != "labels"}

    def states(router: Router) -> np.ndarray:
        parts = []
        for name, data in mixed.each.items():
            with asking(model, name):
                parts.append(pooled_states(model, router, data.train, data.collate))
        return np.concatenate(parts)

    prepare_from(model, Source(batches, usual, states), say)


def set_dial(
    model: TasksModel,
    validations: Mapping[str, datasets.Dataset],
    tokenizer: Any,
    budget: float,
    batch_tokens: int,
) -> None:
    """A budget, and the thresholds that meet it, from encoded validation rows by task; each row
    asks for its own task."""
    routing: Any = getattr(model, "turnout", None)
    if routing is None:
        return
    routing.budget = budget
    heads: Any = model.heads
    # what words ask for are few places, and here a whole vocabulary would be computed
    each = {k: v for k, v in validations.items() if heads[k].config.kind != "words"} or validations
    count = -(-CALIBRATION_ROWS // len(each))
    rows: list[Row] = []
    for name, validation in each.items():
        some = listed(validation.select(range(min(count, len(validation)))))
        place = model.tasks.index(name)
        rows += [{**{k: row[k] for k in READ if k in row}, "task_ids": place} for row in some]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {**padded(rows, tokenizer), "task_ids": tensor([row["task_ids"] for row in rows])}

    calibrate(model, rows, collate, batch_tokens)
