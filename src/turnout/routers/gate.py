"""Learned gates: a score in (0, 1) for each unit and token or sequence; skipped below a threshold.

After GateSkip and SkipNet-style gates with a straight-through estimator (Bengio et al. 2013,
arXiv 1308.3432) on a binary concrete sample (Maddison et al. 2017, arXiv 1611.00712); recurrent
gates after SkipNet (Wang et al. 2018, arXiv 1711.09485). Where a site has several units, the best
can be chosen instead: noisy top-k (Shazeer et al. 2017, arXiv 1701.06538), or by the units, each of
which takes its best tokens (expert choice, Zhou et al. 2022, arXiv 2202.09368). Symbols: their gate
g is our weight, the logit alpha (H(x) of noisy top-k) our ``logit``, the temperature lambda
``temperature``, W_noise our ``spread``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from turnout import objectives, select
from turnout.errors import UserError
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig, masked_mean
from turnout.routers.projection import DepthCell, Projection


class GateConfig(RouterConfig):
    """shape: a linear map, an MLP with one hidden layer, or a recurrent cell along depth, which all
    layers share. shared: one gate for all layers (told the layer by a learned bias) or one per
    layer. open: initial logit, so that all runs at first. temperature: of the sampling noise in
    training; 0 draws nothing, a unit runs above one half. keep: units above a threshold; the
    ``top-k`` units of a token or sequence; or ``expert-choice``: each unit takes its best tokens
    (encoders only). top: keep so many, whatever the budget; None = the budget says. least:
    smallest share that the last two keep in training, where the share is drawn anew for each
    sequence. noise: learned noise on top-k's logits in training. modulate: scale what runs by its
    score. capacity: a unit takes at most this many times the mean load of a sequence (encoders
    only); None = no token is ever dropped."""

    kind: Literal["gate"] = "gate"
    shape: Literal["linear", "mlp", "recurrent"] = "linear"
    hidden: Annotated[int, Field(gt=0)] = 64
    shared: bool = False
    open: float = 3.0
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    keep: Literal["threshold", "top-k", "expert-choice"] = "threshold"
    top: Annotated[int, Field(gt=0)] | None = None
    least: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    noise: bool = False
    modulate: bool = False
    capacity: Annotated[float, Field(ge=1.0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> GateConfig:
        by_token = self.granularity == "token"
        if self.keep == "expert-choice" and not by_token:
            raise ValueError("keep: expert-choice chooses tokens; set granularity: token")
        if self.capacity is not None and not by_token:
            raise ValueError("capacity limits the tokens of a unit; set granularity: token")
        for name, given in (("noise", self.noise), ("top", self.top is not None)):
            if given and self.keep != "top-k":
                raise ValueError(f"{name} is that of noisy top-k; set keep: top-k")
        return self


class GateRouter(Router):
    """A gate per site; straight-through in training, thresholded in inference."""

    Config: ClassVar[type[RouterConfig]] = GateConfig
    scored = True
    reads_logits = False
    config: GateConfig

    def __init__(self, config: GateConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        self.learns_budget = config.keep == "threshold"
        self.weighs = config.modulate
        self.scored = config.top is None
        units = {"all" if config.shared else self._name(site): site.units for site in sites}
        if config.shared and len({site.units for site in sites}) > 1:
            raise UserError("router 'gate' with shared: true needs sites with as many units each")
        looks_ahead = config.keep == "expert-choice" or config.capacity is not None
        if looks_ahead and any(site.stack == "decoder" for site in sites):
            raise UserError(
                "router 'gate': expert-choice and capacity serve encoders (set `stack: encoder` "
                "where there is one): in a decoder, later tokens would push out earlier ones"
            )
        if config.keep == "top-k" and max(units.values()) < 2:
            raise UserError(
                f"router 'gate': keep: top-k chooses among the units of a site, and "
                f"{config.site!r} has one: use sites head or expert, or keep: threshold"
            )
        if config.top is not None and config.top > min(units.values()):
            raise UserError(
                f"router 'gate': top {config.top} is more than the {min(units.values())} units of "
                "a site"
            )
        recurrent = config.shape == "recurrent"
        self.cell = DepthCell(host.hidden, config.hidden) if recurrent else None
        width = config.hidden if recurrent else host.hidden
        hidden = config.hidden if config.shape == "mlp" else None
        ranks = config.keep == "top-k"  # equal logits would always take the first units
        self.gates = _projections(units, width, hidden, ranks)
        self.spread = _projections(units, width, None, False) if config.noise else None
        self.bias = nn.Parameter(torch.full((len(sites), max(units.values())), config.open))
        self._place = {site.key: place for place, site in enumerate(sites)}

    @staticmethod
    def _name(site: Site) -> str:
        return site.key.replace(".", "_")

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        config, place = self.config, self._place[site.key]
        name = "all" if config.shared else self._name(site)
        state_BTD = self._state(site, hidden_BTD, flow)
        logit_BTU = self.logit(place, state_BTD)
        if config.granularity == "batch":
            logit_BTU = logit_BTU.mean(0, keepdim=True).expand_as(logit_BTU)
        if flow.training:
            flow.memory[(site.key, "logit")] = logit_BTU
        chance_BTU = logit_BTU.sigmoid()
        if config.keep == "threshold":
            score_BTU = chance_BTU
            hard_BTU = self._passes(site, score_BTU, logit_BTU, hidden_BTD, flow)
        else:
            if self.spread is not None and flow.training:
                spread_BTU = F.softplus(self.spread[name](state_BTD))
                if config.granularity == "batch":
                    spread_BTU = spread_BTU.mean(0, keepdim=True).expand_as(spread_BTU)
                logit_BTU = logit_BTU + spread_BTU * self._normal(site, hidden_BTD, flow)
                chance_BTU = logit_BTU.sigmoid()
            score_BTU = self._rank(site, logit_BTU.detach(), flow)
            hard_BTU = select.threshold(score_BTU, self._rank_level(site, hidden_BTD, flow))
        if config.capacity is not None:
            hard_BTU = hard_BTU * self._fits_in(site, chance_BTU.detach(), hard_BTU, flow)
        if config.modulate:
            return Route(site, hard_BTU * chance_BTU, score_BTU)
        weight_BTU = hard_BTU
        if flow.training:
            weight_BTU = select.straight_through(hard_BTU, chance_BTU)
        return Route(site, weight_BTU, score_BTU)

    def logit(self, place: int, state: Tensor) -> Tensor:
        """Logits of the units of the site at a place, (..., U), from what the gate reads."""
        site = self.sites[place]
        name = "all" if self.config.shared else self._name(site)
        return self.gates[name](state) + self.bias[place, : site.units].float()

    def _state(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Tensor:
        """What the gate reads, (B, T or 1, D or H)."""
        if self.config.granularity == "token":
            state_BTD = hidden_BTD
        else:
            state_BTD = masked_mean(hidden_BTD, flow.mask_BT(site))[:, None]
        if self.cell is None:
            return state_BTD
        place = self._place[site.key]
        before = None
        if place > 0 and self.sites[place - 1].stack == site.stack:
            before = flow.memory[(self.sites[place - 1].key, "depth")]
        state_BTH = self.cell(state_BTD, before)
        flow.memory[(site.key, "depth")] = state_BTH
        return state_BTH

    def _passes(
        self, site: Site, score_BTU: Tensor, logit_BTU: Tensor, hidden_BTD: Tensor, flow: Flow
    ) -> Tensor:
        """By threshold; sampled in training, open with probability sigmoid(logit / temperature)."""
        temperature = self.config.temperature
        if not flow.training:
            return select.threshold(score_BTU, self.level(flow.budget))
        if temperature == 0:
            return select.threshold(score_BTU.detach(), 0.5)
        uniform_BTU = self.uniform(site, hidden_BTD, flow, 1)
        return select.sample((logit_BTU.detach() / temperature).sigmoid(), uniform_BTU)

    def _rank(self, site: Site, logit_BTU: Tensor, flow: Flow) -> Tensor:
        """Rank among the units of a token, or among the tokens of a unit."""
        if self.config.keep == "top-k":
            return select.rank(logit_BTU)
        return select.rank(logit_BTU, dim=1, valid=self._valid(site, logit_BTU, flow))

    def _rank_level(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> float | Tensor:
        """The rank above which units are kept: fixed, from the dial, or drawn for each sequence."""
        if self.config.top is not None:
            return 1 - self.config.top / site.units
        if not flow.training:
            return self.level(flow.budget)
        draw_B = flow.uniform_B(hidden_BTD.shape[0], hidden_BTD.device, 10)
        if self.config.granularity == "batch":
            draw_B = draw_B[:1].expand_as(draw_B)
        return (1 - self.config.least) * draw_B[:, None, None]

    def _normal(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Tensor:
        """Standard normal noise (B, T or 1, U), by the seed of the pass."""
        uniform_BTU = self.uniform(site, hidden_BTD, flow, 11)
        return torch.special.ndtri(uniform_BTU.clamp(1e-6, 1 - 1e-6))

    def _fits_in(self, site: Site, chance_BTU: Tensor, hard_BTU: Tensor, flow: Flow) -> Tensor:
        """0 for the tokens that come too late: a unit has room for ``capacity`` x the mean load."""
        assert self.config.capacity is not None
        valid_BTU = self._valid(site, hard_BTU, flow)
        wanted_BTU = (hard_BTU > 0) & valid_BTU
        room_B1 = (self.config.capacity * wanted_BTU.sum(1).float().mean(-1, keepdim=True)).ceil()
        order_BTU = chance_BTU.masked_fill(~wanted_BTU, -1.0).argsort(
            dim=1, descending=True, stable=True
        )
        return (order_BTU.argsort(dim=1) < room_B1[:, None]).float()

    def _valid(self, site: Site, like_BTU: Tensor, flow: Flow) -> Tensor:
        mask_BT = flow.mask_BT(site)
        if mask_BT is None:
            return torch.ones_like(like_BTU, dtype=torch.bool)
        return mask_BT[:, :, None].expand_as(like_BTU)

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        own = []
        for site in self.sites:
            logit_BTU = flow.memory[(site.key, "logit")]
            if logit_BTU.shape[1] > 1 and (mask_BT := flow.mask_BT(site)) is not None:
                logit_BTU = logit_BTU[mask_BT]
            own.append(objectives.z_loss(logit_BTU))
        return {"z": torch.stack(own).mean()}


def _projections(
    units: dict[str, int], width: int, hidden: int | None, uneven: bool
) -> nn.ModuleDict:
    return nn.ModuleDict(
        {key: Projection(width, hidden, many, uneven) for key, many in units.items()}
    )
