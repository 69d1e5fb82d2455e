"""What routers of several tasks need before training, and the dial after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, tensor

from turnout.double.answers import READ, padded
from turnout.double.data import TasksData, asking
from turnout.errors import UserError
from turnout.execute.batches import Row
from turnout.hosts.tasks_model import TasksModel
from turnout.routers.base import Router, RouterConfig
from turnout.routers.cluster import ClusterConfig
from turnout.routers.policy import PolicyConfig
from turnout.train.calibrate import calibrate
from turnout.train.data import CALIBRATION_ROWS, Data, listed
from turnout.train.prepare import (
    MOST,
    Source,
    check_data,
    check_stacks,
    pooled_states,
    prepare_from,
)


def check_routers(routers: Sequence[RouterConfig]) -> None:
    """Raise UserError for what is looked for in the rows of one task only."""
    for config in routers:
        if isinstance(config, PolicyConfig) and config.imitate:
            raise UserError("policy with imitate: its search is for recipes of one task")
        if isinstance(config, ClusterConfig) and config.most is not None:
            raise UserError("cluster with most: for several tasks give their number as adapters")


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


def calibrate_tasks(model: TasksModel, each: Mapping[str, Data], batch_tokens: int) -> None:
    """Fill in the dial from validation rows of all tasks, in turns; each asks for its own."""
    if not hasattr(model, "turnout"):
        return
    count = -(-CALIBRATION_ROWS // len(each))
    rows: list[Row] = []
    for name, data in each.items():
        some = listed(data.validation.select(range(min(count, len(data.validation)))))
        place = model.tasks.index(name)
        rows += [{**{k: row[k] for k in READ if k in row}, "task_ids": place} for row in some]
    tokenizer = next(iter(each.values())).tokenizer

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {**padded(rows, tokenizer), "task_ids": tensor([row["task_ids"] for row in rows])}

    calibrate(model, rows, collate, batch_tokens)
