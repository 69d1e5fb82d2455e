"""Search the route of each example on a frozen host, and teach a policy to take it.

Greedy elimination: from the route in which everything runs, the block whose loss costs least is
skipped, then the next; of all routes on the way the one with the largest quality - price x share
is kept. L blocks take L (L + 1) / 2 + 1 passes, where all routes would be 2^L. Dr.LLM (arXiv
2510.12773) searches a tree instead, and trains its routers on the routes as we do, by imitation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row, groups_by_length, inputs_of, lengths_of
from turnout.execute.begin import token_mask
from turnout.execute.span import run_span
from turnout.routers.base import masked_mean
from turnout.routers.policy import PolicyRouter
from turnout.routers.reward import quality
from turnout.train.answers import paired
from turnout.train.prices import price_shares


@dataclass(frozen=True, eq=False)
class Found:
    """What the search found for N examples and L blocks.

    routes_NL: 1 where a block runs. reward_N, dense_N: reward of that route, and of running
    everything. states_NLD: pooled states that enter the blocks along the route.
    """

    routes_NL: Tensor
    reward_N: Tensor
    dense_N: Tensor
    states_NLD: Tensor


@torch.inference_mode()
def search_routes(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    price: float,
    batch_tokens: int = 4096,
) -> Found:
    """The best route of each labelled row that greedy elimination finds, on the host as it is.

    model: routed at site ``layer`` by one policy. price: as the policy's. Raises UserError for
    another model, or no rows.
    """
    router = policy_of(model)
    if not len(rows):
        raise UserError("search_routes needs at least one labelled row")
    depth, width = len(router.sites), router.host.hidden
    share_L = price_shares(router)
    routes = torch.ones(len(rows), depth)
    rewards, dense = torch.empty(len(rows)), torch.empty(len(rows))
    states = torch.empty(len(rows), depth, width)
    for group in groups_by_length(lengths_of(rows), batch_tokens):
        batch = [dict(rows[i]) for i in group]
        labels = collate(batch)["labels"].to(model.device)
        inputs = inputs_of(model, batch, collate)

        def reward(route_BL: Tensor, inputs: Any = inputs, labels: Tensor = labels) -> Tensor:
            logits, _ = walk(model, router, inputs, route_BL)
            judged = paired(model, logits, labels)
            quality_B = quality(*judged, router.config.quality).cpu()
            return quality_B - price * (route_BL * share_L).sum(1)

        now = torch.ones(len(group), depth)
        best, best_reward = now.clone(), reward(now)
        dense[torch.from_numpy(group)] = best_reward
        for _ in range(depth):
            tries = []
            for layer in range(depth):
                without = now.clone()
                without[:, layer] = 0.0
                found = reward(without)
                # skipped already: not a step
                tries.append(torch.where(now[:, layer] > 0, found, -torch.inf))
            value, layer_B = torch.stack(tries, 1).max(1)
            now = now.scatter(1, layer_B[:, None], 0.0)
            better = value > best_reward
            best = torch.where(better[:, None], now, best)
            best_reward = torch.where(better, value, best_reward)
        at = torch.from_numpy(group)
        _, seen = walk(model, router, inputs, best)
        routes[at], rewards[at], states[at] = best, best_reward, seen.cpu()
    return Found(routes, rewards, dense, states)


def walk(
    model: PreTrainedModel, router: PolicyRouter, inputs: dict[str, Any], route_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of given routes, and the pooled states on the way (B, L, D). Blocks run for all rows;
    rows that skip one keep their state."""
    hidden_BTD = run_span(model, inputs, 0, router.sites[0].layer)
    routing: Any = model.turnout
    mask_BT = token_mask(routing, model, inputs, router.sites[0].stack, *hidden_BTD.shape[:2])
    states = []
    for place, site in enumerate(router.sites):
        states.append(masked_mean(hidden_BTD, mask_BT))
        runs_B = route_BL[:, place].to(hidden_BTD.device) > 0
        if bool(runs_B.any()):
            after = run_span(model, inputs, site.layer, site.layer + 1, hidden_BTD)
            hidden_BTD = torch.where(runs_B[:, None, None], after, hidden_BTD)
        following = router.sites[place + 1].layer if place + 1 < len(router.sites) else None
        if following is not None and site.layer + 1 < following:
            hidden_BTD = run_span(model, inputs, site.layer + 1, following, hidden_BTD)
    last = router.sites[-1].layer + 1
    return run_span(model, inputs, last, None, hidden_BTD)["logits"], torch.stack(states, 1)


def imitate(
    router: PolicyRouter, found: Found, epochs: int = 20, rate: float = 2e-3, seed: int = 0
) -> list[float]:
    """Teach a policy the routes that were found, by cross-entropy; the mean loss of each epoch."""
    device = next(router.parameters()).device
    states, routes = found.states_NLD.to(device), found.routes_NL.to(device)
    if router.config.decide == "input":
        states = states[:, :1].expand_as(states)
    optimizer = torch.optim.Adam(router.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(states), generator=generator).to(device)
        total = 0.0
        for part in order.split(256):
            logits = torch.cat(
                [router.logit(p, states[part, p]) for p in range(states.shape[1])], 1
            )
            loss = F.binary_cross_entropy_with_logits(logits, routes[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        losses.append(total / len(states))
    return losses


def policy_of(model: PreTrainedModel) -> PolicyRouter:
    """The policy of a model. Raises UserError unless it is its only router, at site layer."""
    routing: Any = getattr(model, "turnout", None)
    routers = [] if routing is None else routing.all_routers()
    if len(routers) != 1 or not isinstance(routers[0], PolicyRouter):
        raise UserError("this needs a host with one router, of kind policy")
    if routers[0].config.site != "layer":
        raise UserError("this needs a policy at site layer")
    return routers[0]
