"""The dials of a routed model for a while: budget, noise and seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from turnout.errors import UserError
from turnout.generation.settings import WriteSettings

NOISE = "noise_scale"  # of the routing of a model with trained noise


def routing_of(model: Any) -> Any:
    """The routing of a model; None where it has no routers."""
    return getattr(model, "turnout", None)


def has_noise(model: Any) -> bool:
    """Was the model trained with noise, whose scale can be set."""
    return hasattr(routing_of(model), NOISE)


@contextmanager
def dialled(model: Any, settings: WriteSettings) -> Iterator[None]:
    """Write with these settings inside; torch's own generator is then as it was before, where a
    seed is set. Raises UserError for a dial that this model does not have."""
    routing = routing_of(model)
    if routing is None and settings.budget is not None:
        raise UserError("budget: this model has no routers, so there is no budget to set")
    if settings.noise is not None and not has_noise(model):
        raise UserError("noise: this model was trained without noise, so there is no scale to set")
    wanted = {"budget": settings.budget, NOISE: settings.noise, "seed": settings.seed}
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


def dense(model: Any) -> WriteSettings:
    """The dials at which a model is its dense host: everything runs, nothing is perturbed."""
    fields: dict[str, float] = {}
    if routing_of(model) is not None:
        fields["budget"] = 1.0
    if has_noise(model):
        fields["noise"] = 0.0
    return WriteSettings(**fields)  # type: ignore[arg-type]
