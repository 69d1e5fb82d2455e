"""Random layer routing: a layer's output goes, with a probability, to any later layer.

After layer i runs, with probability p the state jumps to a layer j > i drawn from a named
distribution over the later layers (or past the last one); else it goes on to i + 1. Jumps start at
the first layer, or at the held one before the first routed layer. It holds in training and in
inference, so a model can be made to work along many paths. Related: LayerDrop (arXiv 1909.11556,
independent drops) and LayerShuffle (arXiv 2407.04513, random order).
"""

from __future__ import annotations

import warnings
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from turnout import objectives
from turnout.flow import Flow, hash_uniform
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig


class RandomJumpConfig(RouterConfig):
    """p: probability of a jump after each layer that runs. distribution: ``uniform`` over the
    later layers, ``geometric`` (each further layer ``decay`` times as likely) or ``learned``
    (trained by the score function of the task loss). inference: jump in inference too. A budget
    below 1 sets p in inference so that this share of the layers runs on average; with p = 1 some
    layers still run, so there is a floor (``share`` at p = 1), and a warning below it."""

    kind: Literal["random-jump"] = "random-jump"
    granularity: Literal["batch", "sequence"] = "sequence"
    p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    distribution: Literal["uniform", "geometric", "learned"] = "uniform"
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    inference: bool = True


class RandomJumpRouter(Router):
    """Draws a whole path at a stack's first routed layer; the later layers read it."""

    pools = False
    Config: ClassVar[type[RouterConfig]] = RandomJumpConfig
    config: RandomJumpConfig

    def __init__(self, config: RandomJumpConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        self._stacks: dict[str, list[Site]] = {}
        for site in sites:
            self._stacks.setdefault(site.stack, []).append(site)
        longest = max(len(group) + _lead(group) for group in self._stacks.values())
        learned = config.distribution == "learned"
        self.jump = nn.Parameter(torch.zeros(longest, longest + 1)) if learned else None

    def targets(self, depth: int) -> Tensor:
        """Log-probability of each target (depth, depth + 1) after a jump from each layer.

        Row i, column j: from layer i of the path to layer j; j = depth leaves the routed part. A
        held layer before the routed ones is the first of the path.
        """
        ahead = torch.arange(depth + 1)[None, :] - torch.arange(depth)[:, None]
        if self.jump is not None:
            score = self.jump[:depth, : depth + 1].float()
            ahead = ahead.to(score.device)
        elif self.config.distribution == "geometric":
            score = ahead * torch.log(torch.tensor(self.config.decay))
        else:
            score = torch.zeros(depth, depth + 1)
        return score.masked_fill(ahead < 1, -torch.inf).log_softmax(-1)

    def share(self, depth: int, p: float, lead: int = 0) -> float:
        """Expected share of the routed layers that run with jump probability p.

        depth: of the path. lead: how many of its layers are held, 0 or 1.
        """
        return _share(self.targets(depth).exp().tolist(), p, lead)

    def probability(self, depth: int, budget: float, lead: int = 0) -> float:
        """The jump probability that spends a budget on average (bisection; share falls with p)."""
        chance = self.targets(depth).exp().tolist()
        if budget < (floor := _share(chance, 1.0, lead)):
            warnings.warn(
                f"random-jump runs at least {floor:.2f} of its {depth - lead} layers on average, "
                f"which is more than the budget of {budget:g}: every layer jumps. Use random-skip "
                "to spend less",
                stacklevel=2,
            )
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            over = _share(chance, middle, lead) > budget
            low, high = (middle, high) if over else (low, middle)
        return high

    def draws(self, budget: float) -> bool:
        return budget < 1 or (self.config.inference and self.config.p > 0)

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        group = self._stacks[site.stack]
        batch, device = hidden_BTD.shape[0], hidden_BTD.device
        if not flow.training and not self.config.inference and flow.budget >= 1:
            return Route(site, torch.ones(batch, 1, 1, device=device))
        first = (group[0].key, "path")
        if site.key == group[0].key or first not in flow.memory:
            flow.memory[first], flow.memory[(group[0].key, "log_prob")] = self._draw(
                group, batch, device, flow
            )
        place = group.index(site)
        path_BL = flow.memory[first]
        log_prob_BL = flow.memory[(group[0].key, "log_prob")]
        learned = self.jump is not None
        return Route(
            site,
            path_BL[:, place, None, None],
            log_prob_BT=log_prob_BL[:, place, None] if learned else None,
        )

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        if self.jump is None or labels is None:
            return {}
        mine = {site.key: flow.trace[site.key] for site in self.sites}
        loss_B = objectives.loss_per_sequence(logits, labels)
        return {"score_function": objectives.score_function(mine, loss_B)}

    def _draw(
        self, group: list[Site], batch: int, device: torch.device, flow: Flow
    ) -> tuple[Tensor, Tensor]:
        """Which routed layers run (B, L) and the log-probability of each layer's draw (B, L).

        What a held layer before them draws counts with the first one's.
        """
        lead = _lead(group)
        depth = len(group) + lead
        p = self.config.p
        if not flow.training and flow.budget < 1:
            p = self.probability(depth, flow.budget, lead)
        log_chance = self.targets(depth).to(device)
        reach = log_chance.detach().exp().cumsum(-1)
        keys_B = flow.keys_B(batch, device)
        if self.config.granularity == "batch":
            keys_B = keys_B[:1].expand(batch)
        salt = 3 if group[0].stack == "encoder" else 4
        path_BL = torch.zeros(batch, depth, device=device)
        log_prob_BL = torch.zeros(batch, depth, device=device)
        at_B = torch.zeros(batch, dtype=torch.long, device=device)
        for layer in range(depth):
            here_B = at_B == layer
            path_BL[:, layer] = here_B.float()
            jumps_B = hash_uniform(keys_B, salt, layer, 0) < p
            draw_B = hash_uniform(keys_B, salt, layer, 1)
            target_B = torch.searchsorted(reach[layer].contiguous(), draw_B, right=True)
            target_B = target_B.clamp(layer + 1, depth)
            next_B = torch.where(jumps_B, target_B, torch.full_like(target_B, layer + 1))
            chosen_B = torch.where(here_B & jumps_B, log_chance[layer][target_B], 0.0)
            log_prob_BL = log_prob_BL.index_add(
                1, torch.tensor([max(layer, lead)], device=device), chosen_B[:, None]
            )
            at_B = torch.where(here_B, next_B, at_B)
        return path_BL[:, lead:], log_prob_BL[:, lead:]


def _lead(group: list[Site]) -> int:
    """1 where a held layer, whose output may jump too, stands before the routed ones."""
    return int(group[0].layer > 0)


def _share(chance: list[list[float]], p: float, lead: int) -> float:
    """Expected share of layers that run; plain numbers, since every pass with a budget asks."""
    depth = len(chance)
    visit = [1.0] + [0.0] * depth
    for layer, row in enumerate(chance):
        for target in range(layer + 1, depth + 1):
            visit[target] += visit[layer] * p * row[target]
        visit[layer + 1] += visit[layer] * (1 - p)
    return sum(visit[lead:depth]) / (depth - lead)
