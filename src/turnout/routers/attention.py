"""Units by query-key score: the input attends over one learned key a unit, and the best run.

One softmax attention (Vaswani et al. 2017, arXiv 1706.03762) with the pooled input as its query q,
a learned key k_u for each unit u of a stack (a block, a sub-block, a head, an expert) and what the
units do as its values. score_u = exp(q.k_u / sqrt(d)) as a part of the largest. Units are kept by a
threshold on the score or as the top k, and weighted by their softmax scores, renormalised so that
kept units weigh 1 on average. In training the units of a pass are drawn by Gumbel top-k sampling
without replacement (Kool et al. 2019, arXiv 1903.06059), with a share drawn anew for each sequence,
so that one model serves every budget.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from turnout import select
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean


class AttentionConfig(RouterConfig):
    """keep: units whose score passes a threshold, as many as the input needs; or the ``top-k``,
    as many for each input. width: of query and keys. least: smallest share of the units that
    training keeps. noise: scale of the Gumbel noise that explores in training. combine: weigh
    what the kept units do by their scores; False keeps it as the host made it."""

    kind: Literal["attention"] = "attention"
    granularity: Literal["batch", "sequence"] = "sequence"
    keep: Literal["threshold", "top-k"] = "threshold"
    width: Annotated[int, Field(gt=0)] = 64
    least: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    noise: Annotated[float, Field(ge=0.0)] = 1.0
    combine: bool = True


class AttentionRouter(Router):
    """Decides for all units of a stack at its first site, from the state that enters there."""

    Config: ClassVar[type[RouterConfig]] = AttentionConfig
    scored = True
    config: AttentionConfig

    def __init__(self, config: AttentionConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        self.weighs = config.combine
        self.stacks: dict[str, tuple[Site, ...]] = {
            name: tuple(site for site in sites if site.stack == name)
            for name in dict.fromkeys(site.stack for site in sites)
        }
        self.query = nn.ParameterDict(
            {
                name: torch.randn(config.width, host.hidden) / host.hidden**0.5
                for name in self.stacks
            }
        )
        # Equal keys at first: all units weigh 1, and the model is the host.
        self.key = nn.ParameterDict(
            {
                name: torch.zeros(sum(site.units for site in mine), config.width)
                for name, mine in self.stacks.items()
            }
        )

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        mine = self.stacks[site.stack]
        first = mine[0]
        if site is first:
            logit_BU = self._logits(site, hidden_BTD, flow)
            keep_BU = self._keep(logit_BU, flow, site.salt)
            flow.memory[(first.key, "logit")] = logit_BU
            flow.memory[(first.key, "keep")] = keep_BU
        logit_BU = flow.memory[(first.key, "logit")]
        keep_BU = flow.memory[(first.key, "keep")]
        score_BU = (logit_BU - logit_BU.amax(-1, keepdim=True)).exp()
        weight_BU = keep_BU
        if self.config.combine:
            kept_BU = _among(logit_BU, keep_BU)
            count_B1 = keep_BU.sum(-1, keepdim=True)
            weight_BU = kept_BU * count_B1 / kept_BU.sum(-1, keepdim=True).clamp_min(1e-9)
        elif flow.training:
            weight_BU = select.straight_through(keep_BU, score_BU)
        start = sum(other.units for other in mine[: mine.index(site)])
        columns = slice(start, start + site.units)
        rank_BU = score_BU if self.config.keep == "threshold" else select.rank(logit_BU)
        return Route(site, weight_BU[:, None, columns], rank_BU[:, None, columns])

    def _logits(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Tensor:
        """(B, U), in float32: q.k / sqrt(d)."""
        pooled_BD = masked_mean(hidden_BTD, flow.mask_BT(site))
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            pooled_BD = F.layer_norm(pooled_BD, pooled_BD.shape[-1:])
            query_BK = F.linear(pooled_BD, self.query[site.stack].float())
            logit_BU = F.linear(query_BK, self.key[site.stack].float()) / self.config.width**0.5
        if self.config.granularity == "batch":
            logit_BU = logit_BU.mean(0, keepdim=True).expand_as(logit_BU)
        return logit_BU

    def _keep(self, logit_BU: Tensor, flow: Flow, salt: int) -> Tensor:
        """1 for the units that run, 0 for the others, (B, U). salt: of the first site."""
        logit_BU = logit_BU.detach()
        if flow.training:
            level_B1, noise_BU = self._drawn(logit_BU, flow, salt)
            return select.threshold(select.rank(logit_BU + noise_BU), level_B1)
        if self.config.keep == "top-k":
            return select.threshold(select.rank(logit_BU), self.level(flow.budget))
        score_BU = (logit_BU - logit_BU.amax(-1, keepdim=True)).exp()
        return select.threshold(score_BU, self.level(flow.budget))

    def _drawn(self, logit_BU: Tensor, flow: Flow, salt: int) -> tuple[Tensor, Tensor]:
        """The rank above which units are kept (B, 1), and Gumbel noise (B, U), by the seed."""
        batch, units = logit_BU.shape
        device, config = logit_BU.device, self.config
        skip_B = flow.uniform_B(batch, device, 3)
        columns = [flow.uniform_B(batch, device, 4, salt, unit) for unit in range(units)]
        uniform_BU = torch.stack(columns, -1).clamp(1e-6, 1 - 1e-6)
        if config.granularity == "batch":
            skip_B, uniform_BU = skip_B[:1].expand(batch), uniform_BU[:1].expand(batch, units)
        return (1 - config.least) * skip_B[:, None], -config.noise * (-uniform_BU.log()).log()


def _among(logit_BU: Tensor, keep_BU: Tensor) -> Tensor:
    """exp(logits), relative to the best unit that is kept; 0 for the others, (B, U)."""
    kept_BU = logit_BU.masked_fill(keep_BU == 0, -torch.inf)
    best_B1 = kept_BU.detach().amax(-1, keepdim=True)
    return (kept_BU - best_B1.masked_fill(best_B1.isinf(), 0.0)).exp()
