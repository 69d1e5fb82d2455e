"""Take the routers off a model for a while, and put them back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.tasks_model import TasksModel
from turnout.install import install, uninstall
from turnout.train.saving import note_dial
from turnout.units.experts import reorder


@contextmanager
def bare(model: TasksModel, seed: int = 0) -> Iterator[None]:
    """Inside, the model has no routers. Afterwards they have the weights, the dial and the budget
    that they had; what they know of tasks that came in between is drawn by the seed."""
    routing: Any = getattr(model, "turnout", None)
    if routing is None:
        yield
        return
    configs = [router.config for router in routing.all_routers()]
    before = {key: value.clone() for key, value in routing.state_dict().items()}
    orders = {place: order.clone() for place, order in routing.orders.items()}
    levels = {name: router.levels for name, router in routing.routers.items()}
    budget, seed_of_routes, task = routing.budget, routing.seed, routing.task
    uninstall(model)
    yield
    for view in blocks_of(model, find_family(model)):
        if view.place in orders:
            reorder(view, orders[view.place])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        install(model, configs, ordered=True)
    grown: Any = model.turnout
    after = grown.state_dict()
    grown.load_state_dict({key: widened(value, after[key]) for key, value in before.items()})
    for name, router in grown.routers.items():
        router.levels = levels[name]
    grown.budget, grown.seed, grown.task = budget, seed_of_routes, task
    note_dial(model)


def widened(old: Tensor, new: Tensor) -> Tensor:
    """The old values, with what is new behind them."""
    if old.shape == new.shape:
        return old
    value = new.clone()
    value[tuple(slice(0, size) for size in old.shape)] = old
    return value
