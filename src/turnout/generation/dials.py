"""The dials of a routed model for a while: budget, noise and seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from turnout.errors import UserError
from turnout.flow import Flow
from turnout.generation.settings import WriteSettings
from turnout.route import Route, Site


def routing_of(model: Any) -> Any:
    """The routing of a model; None where it has no routers."""
    return getattr(model, "turnout", None)


def has_noise(model: Any) -> bool:
    """Was the model trained with noise, whose scale can be set."""
    routing = routing_of(model)
    return routing is not None and bool(routing.all_noise())


@contextmanager
def dialled(model: Any, settings: WriteSettings) -> Iterator[None]:
    """Write with these settings inside; torch's own generator is then as it was before, where a
    seed is set. Raises UserError for a dial that this model does not have."""
    routing = routing_of(model)
    if (routing is None or not routing.sites) and settings.budget is not None:
        raise UserError("budget: this model has no routers, so there is no budget to set")
    if settings.noise is not None and not has_noise(model):
        raise UserError("noise: this model was trained without noise, so there is no scale to set")
    wanted = {"budget": settings.budget, "noise_scale": settings.noise, "seed": settings.seed}
    before = {}
    for name, value in wanted.items():
        if routing is not None and value is not None:
            before[name] = getattr(routing, name)
            setattr(routing, name, value)
    try:
        if settings.seed is None:
            yield
        else:
            devices = [model.device] if model.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(settings.seed)
                yield
    finally:
        for name, value in before.items():
            setattr(routing, name, value)


@contextmanager
def dense(model: Any) -> Iterator[None]:
    """A model is its dense host inside: budget 1, no trained noise, and every unit of the host
    runs, also where a router would skip it at budget 1 (random ones do). Units that the host lacks
    are routed as at budget 1."""
    routing = routing_of(model)
    if routing is None:
        yield
        return
    fields: dict[str, float] = {"budget": 1.0} if routing.sites else {}
    if has_noise(model):
        fields["noise"] = 0.0
    decide = routing.decide

    def whole(site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        route: Route = decide(site, hidden_BTD, flow)
        if routing.config_of(site).owns_units:
            return route
        return replace(route, weight_BTU=torch.ones_like(route.weight_BTU))

    with dialled(model, WriteSettings(**fields)):  # type: ignore[arg-type]
        routing.decide = whole
        try:
            yield
        finally:
            del routing.decide
