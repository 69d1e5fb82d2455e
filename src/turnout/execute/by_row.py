"""A budget for each sequence of a batch: every router is asked once a budget, and each sequence
takes the answer to its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import Router


def decide_by_row(router: Router, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
    """The route at one site, each sequence at its own budget, which ``flow`` must have."""
    assert flow.budget_B is not None
    found: list[tuple[Tensor, Route, dict[tuple[str, str], Tensor]]] = []
    for budget in flow.budget_B.unique().tolist():
        lane = replace(flow, budget=budget, budget_B=None, memory=dict(flow.memory))
        route = router.decide(site, hidden_BTD, lane)
        found.append((flow.budget_B == budget, route, lane.memory))
    _, first, memory = found[0]
    weight, score, log_prob = first.weight_BTU, first.score_BTU, first.log_prob_BT
    memory = dict(memory)
    for mine_B, route, remembered in found[1:]:
        weight = _take(mine_B, route.weight_BTU, weight)
        if score is not None and route.score_BTU is not None:
            score = _take(mine_B, route.score_BTU, score)
        if log_prob is not None and route.log_prob_BT is not None:
            log_prob = _take(mine_B, route.log_prob_BT, log_prob)
        for key, value in remembered.items():
            memory[key] = _take(mine_B, value, memory[key]) if key in memory else value
    flow.memory.update(memory)
    return Route(site, weight, score, log_prob)


def _take(mine_B: Tensor, value: Tensor, other: Tensor) -> Tensor:
    """Rows of one tensor where they are its own, else those of the other; all are batch first."""
    if value is other or not value.ndim or len(value) != len(mine_B):
        return value
    return torch.where(mine_B.view(-1, *[1] * (value.ndim - 1)), value, other)
