"""Routing as a Markov decision process, learned by Q-learning.

States, actions and rewards are those of ``policy``: at each block the pooled state s, run or skip,
-price x the block's share of the work as it is spent, and the quality of the answer at the end.
Q(s, a) learns the return by one-step temporal differences from a replay memory, with a slowly
moving target network and epsilon-greedy exploration (Mnih et al. 2015, arXiv 1312.5602); the online
network chooses the action that the target network values (double Q-learning, van Hasselt et al.
2016, arXiv 1509.06461). A unit runs where its advantage Q(s, run) - Q(s, skip), through a sigmoid,
passes the dial's threshold.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from turnout import select
from turnout.errors import UserError
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean
from turnout.routers.projection import Projection
from turnout.routers.reward import RewardConfig, quality, shares, unmeasured

Share = Annotated[float, Field(ge=0.0, le=1.0)]
SHARP = 20.0  # an advantage of 0.05 of quality is a score of 0.73


class QLearningConfig(RewardConfig):
    """explore: chance of a random action at first; it
    falls to ``explore_last`` over the first half of the training. replay: passes that are
    remembered, a sequence each (half-precision states; kept in checkpoints, so that resuming is
    exact). batch: of them for one step. target_rate: how fast the target network follows."""

    kind: Literal["q-learning"] = "q-learning"
    explore: Share = 1.0
    explore_last: Share = 0.05
    replay: Annotated[int, Field(gt=0)] = 1024
    batch: Annotated[int, Field(gt=0)] = 256
    target_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    hidden: Annotated[int, Field(gt=0)] = 64


class QLearningRouter(Router):
    """Action values a block; greedy in inference."""

    Config: ClassVar[type[RouterConfig]] = QLearningConfig
    scored = True
    config: QLearningConfig
    seconds: Tensor | None
    states: Tensor
    actions: Tensor
    costs: Tensor
    qualities: Tensor
    seen: Tensor

    def __init__(self, config: QLearningConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        if any(site.units > 1 for site in sites):
            raise UserError(
                f"router 'q-learning' chooses to run or skip one unit a site; site {config.site!r} "
                "has several: use 'policy' there"
            )
        count = len(sites)
        self.register_buffer("seconds", unmeasured(config, count))
        self.value = nn.ModuleList(Projection(host.hidden, config.hidden, 2) for _ in sites)
        # Running is worth more at first, so that all runs.
        self.bias = nn.Parameter(torch.tensor([[0.0, 0.1]]).repeat(count, 1))
        for name, parameter in self._online().items():
            self.register_buffer(_target_name(name), parameter.detach().clone())
        size = config.replay
        self.register_buffer("states", torch.zeros(size, count, host.hidden, dtype=torch.float16))
        self.register_buffer("actions", torch.zeros(size, count, dtype=torch.long))
        self.register_buffer("costs", torch.zeros(size, count))
        self.register_buffer("qualities", torch.zeros(size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._place = {site.key: place for place, site in enumerate(sites)}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        place = self._place[site.key]
        state_BD = masked_mean(hidden_BTD, flow.mask_BT(site)).detach()
        flow.memory[(site.key, "state")] = state_BD
        value_BA = self.value[place](state_BD) + self.bias[place].float()
        score_BT = (SHARP * (value_BA[:, 1:] - value_BA[:, :1])).sigmoid()
        if flow.training:
            greedy_BT = select.threshold(score_BT.detach(), 0.5)
            random_BT = (self.uniform(site, hidden_BTD, flow, 8)[:, :, 0] < 0.5).float()
            explores_BT = self.uniform(site, hidden_BTD, flow, 9)[:, :, 0] < self.epsilon
            keep_BT = torch.where(explores_BT, random_BT, greedy_BT)
        else:
            keep_BT = select.threshold(score_BT, self.level(flow.budget))
        return Route(site, keep_BT[:, :, None], score_BT[:, :, None])

    @property
    def epsilon(self) -> float:
        """Chance of a random action now."""
        first, last = self.config.explore, self.config.explore_last
        return first + (last - first) * min(1.0, 2 * self.done)

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        if labels is None:
            return {}
        self._remember(flow, logits, labels)
        return {"policy": self._difference()}

    @torch.no_grad()
    def _remember(self, flow: Flow, logits: Tensor, labels: Tensor) -> None:
        """Write a batch over the oldest passes in memory, and let the target network follow."""
        size = len(self.states)
        quality_B = quality(logits, labels, self.config.quality)[-size:]  # what memory can hold
        keys = [site.key for site in self.sites]
        at = (self.seen + torch.arange(len(quality_B), device=self.seen.device)) % size
        states = torch.stack([flow.memory[(k, "state")][-size:] for k in keys], 1)
        # networks read normalised states; normalised ones fit a half, whatever the host's scale
        self.states[at] = F.layer_norm(states, states.shape[-1:]).half()
        ran = [flow.trace[key].active_BT[-size:, 0].long() for key in keys]
        self.actions[at] = torch.stack(ran, 1)
        self.costs[at] = shares(flow, self.sites, self.seconds)[-size:].float()
        self.qualities[at] = quality_B
        self.seen += len(quality_B)
        for name, parameter in self._online().items():
            self.get_buffer(_target_name(name)).lerp_(parameter, self.config.target_rate)

    def _difference(self) -> Tensor:
        """Huber loss of the temporal differences of remembered passes, a mean over blocks."""
        known = min(int(self.seen), len(self.states))
        pick = torch.randint(known, (min(self.config.batch, known),)).to(self.states.device)
        states, price = self.states[pick].float(), self.config.price
        total, count = torch.zeros((), device=states.device), len(self.sites)
        for place in range(count):
            value_NA = self.value[place](states[:, place]) + self.bias[place].float()
            found_N = value_NA.gather(1, self.actions[pick, place, None])[:, 0]
            reward_N = -price * self.costs[pick, place]
            if place == count - 1:
                target_N = reward_N + self.qualities[pick]
            else:
                target_N = reward_N + self._next(place + 1, states[:, place + 1])
            total = total + F.smooth_l1_loss(found_N, target_N.detach(), beta=0.1)
        return total / count

    @torch.no_grad()
    def _next(self, place: int, state_ND: Tensor) -> Tensor:
        """The target network's value of the action that the online network takes, (N,)."""
        online_NA = self.value[place](state_ND) + self.bias[place].float()
        prefix = f"value.{place}."
        weights = {
            name.removeprefix(prefix): self.get_buffer(_target_name(name))
            for name in self._online()
            if name.startswith(prefix)
        }
        target_NA = functional_call(self.value[place], weights, (state_ND,))
        target_NA = target_NA + self.get_buffer(_target_name("bias"))[place]
        return target_NA.gather(1, online_NA.argmax(1, keepdim=True))[:, 0]

    def _online(self) -> dict[str, Any]:
        """The network that learns."""
        return dict(self.named_parameters())


def _target_name(name: str) -> str:
    return "target_" + name.replace(".", "_")
