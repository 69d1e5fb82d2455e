"""What routers that learn from a reward are paid: quality less the price of the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from turnout import objectives
from turnout.cost import dense_flops_B, entered_in, nested, route_flops_B
from turnout.errors import UserError
from turnout.flow import IGNORED, Flow
from turnout.route import Site
from turnout.routers.base import RouterConfig

Positive = Annotated[float, Field(ge=0.0)]


class RewardConfig(RouterConfig):
    """quality: probability of the right answer, or 1 where it is the most likely. price: what
    running everything costs, in units of quality. cost: work in FLOPs, or in seconds, measured on
    this machine before training."""

    granularity: Literal["sequence"] = "sequence"
    quality: Literal["probability", "correct"] = "probability"
    price: Positive = 0.2
    cost: Literal["flops", "seconds"] = "flops"


@torch.no_grad()
def quality(logits: Tensor, labels: Tensor, how: str) -> Tensor:
    """Of each answer, 0..1, (B,); a mean over labelled tokens where tokens have labels. Raises
    UserError for logits that are not finite: one such reward would spoil a router for good."""
    if not bool(logits.isfinite().all()):
        raise UserError(
            "the model's logits are NaN or infinite, so there is no reward to learn from: lower "
            "the learning rate, or train in fp32"
        )
    if how == "probability":
        return (-objectives.loss_per_sequence(logits, labels)).exp()
    return correct(logits, labels)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the most likely class is right, (B,); a mean over labelled tokens."""
    right = (logits.argmax(-1) == labels).float()
    if right.ndim == 1:
        return right
    counts = (labels != IGNORED).float()
    return (right * counts).sum(1) / counts.sum(1).clamp_min(1.0)


def unmeasured(config: RewardConfig, sites: int) -> Tensor | None:
    """Seconds of sites before anyone has measured them; None where a router pays in FLOPs."""
    return torch.full((sites,), torch.nan) if config.cost == "seconds" else None


def check_measured(seconds_S: Tensor) -> None:
    """Raise UserError for seconds that nobody has measured."""
    if not bool(seconds_S.isfinite().all()):
        raise UserError(
            "cost: seconds, but how long each site takes was not measured: call "
            "turnout.prepare(model, rows, collate) before training, as `turnout train` does"
        )


@torch.no_grad()
def shares(flow: Flow, sites: Sequence[Site], seconds_S: Tensor | None) -> Tensor:
    """What each site spent of the work of all of them, (B, S): adds up to 1 when everything runs.
    A layer stands for its sub-blocks too, other routers' included: skipping it skips them.

    seconds_S: time of each site when it runs; None = FLOPs count. Raises UserError for seconds that
    were not measured.
    """
    if seconds_S is not None:
        check_measured(seconds_S)
    by_key = {route.site.key: route for route in nested(flow.trace, own=False)}
    spent, whole = [], []
    for place, site in enumerate(sites):
        route = by_key[site.key]
        valid_BT = flow.trace.valid_BT(site.stack)
        # keys, values and products that a skipped attention makes for others are no saving; the
        # seconds of a site are those that skipping it saves
        entered = entered_in(flow.trace, route) if seconds_S is None else False
        spent_B = route_flops_B(route, valid_BT, entered)
        whole_B = dense_flops_B(route.site, valid_BT)
        if seconds_S is not None:
            spent_B = spent_B / whole_B * seconds_S[place]
            whole_B = torch.ones_like(whole_B) * seconds_S[place]
        spent.append(spent_B)
        whole.append(whole_B)
    return torch.stack(spent, 1) / torch.stack(whole, 1).sum(1, keepdim=True)


def reinforce(reward_B: Tensor, value_B: Tensor, log_prob_B: Tensor) -> Tensor:
    """Loss of REINFORCE with a learned baseline (Williams 1992), a scalar.

    value_B: the baseline, which learns to expect the reward; log_prob_B: of the whole route that
    was drawn. Advantages are centred within the batch: what the baseline does not know yet is the
    same for all.
    """
    reward_B = reward_B.to(value_B)
    advantage_B = (reward_B - value_B).detach()
    if len(advantage_B) > 1:
        advantage_B = advantage_B - advantage_B.mean()
    return (value_B - reward_B).square().mean() - (advantage_B * log_prob_B).mean()
