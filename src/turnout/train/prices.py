"""How long each routed site takes on this machine: the prices of routers that pay in seconds."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.execute.mode import evaluating
from turnout.route import Route, Site
from turnout.routers.base import Router
from turnout.routers.reward import check_measured

ROUNDS = 7
LEAST = 1e-6  # seconds; a site that saves nothing measurable still has a price


def price_shares(router: Router) -> Tensor:
    """What each site of a router costs, as a part of them all, (S,), on the CPU: measured seconds
    where the router pays in seconds, else FLOPs of a token. Raises UserError for seconds that were
    not measured."""
    seconds = getattr(router, "seconds", None)
    if seconds is None:
        seconds = torch.tensor([site.cost.row for site in router.sites])
    check_measured(seconds)
    return (seconds / seconds.sum()).cpu()


@torch.inference_mode()
def measured_seconds(
    model: PreTrainedModel, sites: tuple[Site, ...], batch: dict[str, Tensor]
) -> Tensor:
    """Seconds that a pass over the batch gains when one site is skipped, for each site, (S,).

    Everything else runs, so what routing itself costs is in both times. Rounds are interleaved;
    the median of the paired differences counts.
    """
    routing: Any = model.turnout
    asked = routing.decide
    skipped: list[str] = []

    def fixed(site: Site, hidden_BTD: Tensor, flow: Any) -> Route:
        value = 0.0 if site.key in skipped else 1.0
        return Route(site, hidden_BTD.new_full((len(hidden_BTD), 1, site.units), value))

    gained: dict[str, list[float]] = {site.key: [] for site in sites}
    routing.decide = fixed
    finishers = {router: router.finish for router in routing.all_routers()}
    for router in finishers:
        router.finish = lambda outputs, flow: outputs
    try:
        with evaluating(model):
            for round_ in range(ROUNDS + 1):
                for site in sites:
                    skipped.clear()
                    whole = _seconds(model, batch)
                    skipped.append(site.key)
                    if round_:
                        gained[site.key].append(whole - _seconds(model, batch))
    finally:
        routing.decide = asked
        for router, finish in finishers.items():
            router.finish = finish
    found = [max(LEAST, statistics.median(gained[site.key])) for site in sites]
    return torch.tensor(found, device=model.device)


def _seconds(model: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    start = time.perf_counter()
    model(**batch)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
