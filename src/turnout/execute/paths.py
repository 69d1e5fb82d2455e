"""Average a model over several random paths, and tell how far they disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.mode import evaluating
from turnout.execute.routing import Routing


@dataclass(frozen=True, eq=False)
class PathAverage:
    """probability: mean over paths, (B, C) or (B, T, C). spread: standard deviation of each over
    the paths, same shape. each: the probabilities of every path, (paths, ...)."""

    probability: Tensor
    spread: Tensor
    each: Tensor


def check_paths(routing: Routing, paths: int) -> None:
    """Raise UserError for fewer than one path, and where several would all be the same."""
    if paths < 1:
        raise UserError(f"paths must be at least 1, got {paths}")
    routers = routing.all_routers()
    if not routing.is_noisy and not any(router.draws(routing.budget) for router in routers):
        kinds = ", ".join(router.config.kind for router in routers)
        raise UserError(
            f"paths {paths}: these routers ({kinds}) take the same path each time at a budget of "
            f"{routing.budget:g}; averaging needs random-jump or random-skip, or trained noise "
            "at a noise_scale above 0"
        )


@torch.inference_mode()
def average_paths(
    model: PreTrainedModel, inputs: Mapping[str, Any], paths: int, seed: int | None = None
) -> PathAverage:
    """Run the inputs along ``paths`` random paths and average the probabilities.

    Path i has seed + i, so a seed repeats the whole result; None draws one from torch's generator.
    With granularity ``sequence`` every sequence takes paths of its own, with ``batch`` all take
    the same. Raises UserError for an unrouted model, one without a random router or noise, or fewer
    than one path.
    """
    routing: Any = getattr(model, "turnout", None)
    if not isinstance(routing, Routing):
        raise UserError(
            "average_paths needs a routed model; call turnout.install(model, ...) first"
        )
    check_paths(routing, paths)
    first = int(torch.randint(0, 2**40, ()).item()) if seed is None else seed
    before, routing.seed = routing.seed, None
    found = []
    try:
        with evaluating(model):  # in training every pass draws a seed of its own
            for path in range(paths):
                routing.seed = first + path
                found.append(model(**inputs)["logits"].float().softmax(-1))
    finally:
        routing.seed = before
    each = torch.stack(found)
    return PathAverage(each.mean(0), each.std(0, unbiased=False), each)
