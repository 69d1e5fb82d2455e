"""Tokens by received attention: what the layer before looked at runs on, the rest is skipped.

A token's importance is the attention that it received in the layer before, from the class token or
from all tokens, averaged over heads: the score s of learned token pruning (Kim et al. 2021, arXiv
2107.00910) and of PoWER-BERT (Goyal et al. 2020, arXiv 2001.08950), times the number of tokens, so
that 1 is an equal share in texts of any length. Symbols: their threshold theta of a layer is
exp(-bias) here, and their soft mask sigmoid((s - theta) / T) is our score sigmoid(log s + bias).
``top-k`` keeps a share of the tokens instead, layer by layer a smaller one (their retention
configuration), and trains with a share drawn anew for each batch. Skipped tokens stay skipped,
but others can still see them; with ``visible: false`` they are gone, which is the pruning of both
papers.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from turnout import select
from turnout.errors import UserError
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, ones_route


class TokenAttentionConfig(RouterConfig):
    """received: attention of the class token (the first one), or of ``all``. keep: tokens above a
    learned ``threshold``, or the ``top-k``. pace: of top-k, whether each layer keeps the same part
    of what the one before left (``geometric``), or all keep as many (``even``). least: smallest
    share of the tokens that top-k keeps in training. open: initial bias of the threshold, so that
    all runs at first. temperature: of the sampling noise of the threshold in training. The first
    token always runs."""

    kind: Literal["token-attention"] = "token-attention"
    site: Literal["layer", "ffn"] = "layer"
    granularity: Literal["token"] = "token"
    hold_first: Annotated[int, Field(ge=1)] = 1
    received: Literal["class", "all"] = "all"
    keep: Literal["threshold", "top-k"] = "threshold"
    pace: Literal["geometric", "even"] = "geometric"
    least: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    open: float = 3.0
    temperature: Annotated[float, Field(ge=0.0)] = 1.0


class TokenAttentionRouter(Router):
    """Keeps the tokens that the layer before attended to."""

    Config: ClassVar[type[RouterConfig]] = TokenAttentionConfig
    scored = True
    config: TokenAttentionConfig

    def __init__(
        self, config: TokenAttentionConfig, sites: tuple[Site, ...], host: HostShape
    ) -> None:
        super().__init__(config, sites, host)
        if any(site.stack == "decoder" for site in sites):
            raise UserError(
                "router 'token-attention' serves encoders (set `stack: encoder` where there is "
                "one): in a decoder, attention received from later tokens would decide about "
                "earlier ones; use 'gate' with granularity: token there"
            )
        self.learns_budget = config.keep == "threshold"
        self.watch = config.received
        self.bias = None
        if self.learns_budget:
            self.bias = nn.Parameter(torch.full((len(sites),), config.open))
        self._place = {site.key: place for place, site in enumerate(sites)}

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        received_BT = self._received(site, flow)
        if received_BT is None:  # nothing ran in the layers before
            return ones_route(site, hidden_BTD)
        valid_BT = flow.mask_BT(site)
        if valid_BT is None:
            valid_BT = torch.ones_like(received_BT, dtype=torch.bool)
        first_BT = valid_BT & (valid_BT.cumsum(1) == 1)
        place = self._place[site.key]
        alive_BT = valid_BT
        if place > 0 and (before := (self.sites[place - 1].key, "alive")) in flow.memory:
            alive_BT = alive_BT & flow.memory[before]
        if self.bias is None:
            score_BT = select.rank(received_BT.masked_fill(~alive_BT, -1.0), 1, valid_BT)
            keep_BT = score_BT > self._level_B1(len(valid_BT), place, flow, hidden_BTD.device)
        else:
            logit_BT = received_BT.clamp_min(1e-6).log() + self.bias[place].float()
            score_BT = logit_BT.sigmoid()
            keep_BT = self._passes(site, score_BT, logit_BT, hidden_BTD, flow)
        keep_BT = (keep_BT | first_BT) & alive_BT
        flow.memory[(site.key, "alive")] = keep_BT
        weight_BT = keep_BT.float()
        if flow.training and self.bias is not None:
            weight_BT = torch.where(alive_BT, select.straight_through(weight_BT, score_BT), 0.0)
        return Route(site, weight_BT[:, :, None], score_BT[:, :, None])

    def _received(self, site: Site, flow: Flow) -> Tensor | None:
        """(B, T): of the last layer before the site whose attention ran."""
        for layer in reversed(range(site.layer)):
            found = flow.memory.get((f"{site.stack}.{layer}", "received"))
            if found is not None:
                return found
        return None

    def _level_B1(self, batch: int, place: int, flow: Flow, device: torch.device) -> Tensor:
        """The rank above which top-k keeps tokens: from the dial, or drawn in training."""
        if flow.training:
            draw_B = flow.uniform_B(batch, device, 5)[:1].expand(batch)
            level_B = (1 - self.config.least) * draw_B  # the same for all: sequences stay alike
        else:
            level_B = torch.full((batch,), self.level(flow.budget), device=device)
        if self.config.pace == "geometric":
            key = (self.sites[0].key, "part")  # the same at every site of a pass
            if key not in flow.memory:
                flow.memory[key] = shrinking(1 - level_B, len(self.sites))
            level_B = 1 - flow.memory[key] ** (place + 1)
        return level_B[:, None]

    def _passes(
        self, site: Site, score_BT: Tensor, logit_BT: Tensor, hidden_BTD: Tensor, flow: Flow
    ) -> Tensor:
        """Which tokens run by their score, (B, T)."""
        if flow.training and self.config.temperature > 0:
            uniform_BT = flow.uniform_BT(hidden_BTD, site, 6, site.salt)
            chance_BT = (logit_BT.detach() / self.config.temperature).sigmoid()
            return select.sample(chance_BT, uniform_BT).bool()
        return score_BT.detach() > self.level(flow.budget)


def shrinking(share: Tensor, layers: int) -> Tensor:
    """The part r of the tokens left that each layer keeps, so that the mean of r, r^2, ... over the
    layers is a share in 0..1; same shape. Read off a table of 1,024 steps, which is finer than one
    token of most sequences."""
    part = torch.linspace(0, 1, 1025, device=share.device, dtype=share.dtype)
    power = torch.arange(1, layers + 1, device=share.device, dtype=share.dtype)
    mean = (part[:, None] ** power).mean(1)
    at = torch.searchsorted(mean, share.clamp(0, 1)).clamp(1, len(part) - 1)
    rest = (share.clamp(0, 1) - mean[at - 1]) / (mean[at] - mean[at - 1])
    return part[at - 1] + rest * (part[at] - part[at - 1])
