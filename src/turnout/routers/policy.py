"""Routing as a Markov decision process, learned by policy gradient.

State: the pooled state that enters a block (or the first one, for all blocks), normalised. Action:
run each unit or skip it. Reward, at the end: quality - price x share of the work that was spent.
REINFORCE (Williams 1992) with a learned baseline and an entropy bonus; with ``curriculum`` the last
layers begin to decide first, as in BlockDrop (Wu et al. 2018, arXiv 1711.08393: their policy pi is
our probability to run, their reward 1 - (share)^2 for a right answer is ours with the share's first
power, and a wrong answer costs quality instead of a fixed gamma). In inference a unit runs where
its probability passes the dial's threshold.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from turnout import select
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean
from turnout.routers.projection import Projection
from turnout.routers.reward import Positive, RewardConfig, quality, reinforce, shares, unmeasured


class PolicyConfig(RewardConfig):
    """decide: ``layer`` looks at the state that enters each block, ``input`` decides for all blocks
    at the first. entropy: weight of the bonus for undecided policies. curriculum: part of the
    training after which all layers decide. imitate: so many training texts are searched for their
    best route on the frozen host (see train/search.py), which the policy learns to take before
    training; site layer. open: initial logit, so that all runs at first. hidden:
    width of the policy's hidden layer."""

    kind: Literal["policy"] = "policy"
    decide: Literal["layer", "input"] = "layer"
    entropy: Positive = 0.01
    curriculum: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    imitate: Annotated[int, Field(ge=0)] = 0
    open: float = 1.5
    learning_rate: Annotated[float, Field(gt=0.0)] | None = 1e-2
    hidden: Annotated[int, Field(gt=0)] = 64

    @model_validator(mode="after")
    def _searches(self) -> PolicyConfig:
        if self.imitate and self.site != "layer":
            raise ValueError("imitate: routes are searched at site layer")
        return self


class PolicyRouter(Router):
    """A stochastic policy in training, a threshold on its probabilities in inference."""

    Config: ClassVar[type[RouterConfig]] = PolicyConfig
    scored = True
    config: PolicyConfig
    seconds: Tensor | None

    def __init__(self, config: PolicyConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        self.policy = nn.ModuleList(
            Projection(host.hidden, config.hidden, site.units) for site in sites
        )
        most = max(site.units for site in sites)
        self.bias = nn.Parameter(torch.full((len(sites), most), config.open))
        self.baseline = Projection(host.hidden, config.hidden, 1)
        self.bias_of_baseline = nn.Parameter(torch.zeros(()))
        self.register_buffer("seconds", unmeasured(config, len(sites)))
        # draw routes in inference too, each action with at least this chance: to learn in use
        self.explores: float | None = None
        self._place = {site.key: place for place, site in enumerate(sites)}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        place = self._place[site.key]
        first = next(other for other in self.sites if other.stack == site.stack)
        if self.config.decide == "layer" or site is first:
            flow.memory[(site.key, "state")] = masked_mean(hidden_BTD, flow.mask_BT(site)).detach()
        asked = site if self.config.decide == "layer" else first
        logit_BU = self.logit(place, flow.memory[(asked.key, "state")])
        score_BTU = logit_BU.sigmoid()[:, None]
        if not flow.training and self.explores is None:
            keep_BTU = select.threshold(score_BTU, self.level(flow.budget))
            return Route(site, keep_BTU, score_BTU)
        if flow.training and not self.decides(place):
            return Route(site, torch.ones_like(score_BTU).detach(), score_BTU)
        uniform_BTU = self.uniform(site, hidden_BTD, flow, 7)
        least = self.explores or 0.0
        keep_BTU = select.sample(score_BTU.detach().clamp(least, 1 - least), uniform_BTU)
        log_prob_BU = F.logsigmoid(torch.where(keep_BTU[:, 0] > 0, logit_BU, -logit_BU))
        return Route(site, keep_BTU, score_BTU, log_prob_BU.sum(-1, keepdim=True))

    def logit(self, place: int, state_BD: Tensor) -> Tensor:
        """Log-odds that the units of a site run, (B, U), from its pooled state."""
        units = self.sites[place].units
        return self.policy[place](state_BD) + self.bias[place, :units].float()

    def value(self, state_BD: Tensor) -> Tensor:
        """The expected reward, (B,), from the first pooled state."""
        return self.baseline(state_BD)[:, 0] + self.bias_of_baseline.float()

    def decides(self, place: int) -> bool:
        """Does a layer decide yet; those at the end begin."""
        curriculum = self.config.curriculum
        share = 1.0 if curriculum == 0 else min(1.0, self.done / curriculum)
        return place >= (len(self.sites) - 1) * (1 - share)

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        if labels is None:
            return {}
        routes = [flow.trace[site.key] for site in self.sites]
        reward_B = self.reward(flow, logits, labels)
        value_B = self.value(flow.memory[(self.sites[0].key, "state")])
        drawn = [route.log_prob_BT.sum(1) for route in routes if route.log_prob_BT is not None]
        log_prob_B = torch.stack(drawn).sum(0) if drawn else torch.zeros_like(reward_B)
        total = reinforce(reward_B, value_B, log_prob_B)
        for route in routes:
            if route.log_prob_BT is not None and route.score_BTU is not None:
                total = total - self.config.entropy * _entropy(route.score_BTU)
        return {"policy": total}

    def reward(self, flow: Flow, logits: Tensor, labels: Tensor) -> Tensor:
        """quality - price x share of the routed work, (B,), without a gradient."""
        share_B = shares(flow, self.sites, self.seconds).sum(1)
        return quality(logits, labels, self.config.quality) - self.config.price * share_B


def _entropy(score: Tensor) -> Tensor:
    """Mean entropy of Bernoulli probabilities, in nats."""
    score = score.clamp(1e-6, 1 - 1e-6)
    return -(score * score.log() + (1 - score) * (1 - score).log()).mean()
