"""A router for tests only: it gives fixed weights, hard or soft, whatever it sees."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers import ROUTERS, HostShape, Router, RouterConfig

MOST_B, MOST_T = 4, 64


class FixedConfig(RouterConfig):
    """keep: share of units that run. soft: weights that a parameter holds instead of 1.
    draw: which of the fixed patterns."""

    kind: Literal["fixed"] = "fixed"
    keep: float = 0.5
    soft: bool = False
    draw: int = 0


class FixedRouter(Router):
    """Runs a fixed pattern of units."""

    Config: ClassVar[type[RouterConfig]] = FixedConfig
    config: FixedConfig

    def __init__(self, config: FixedConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        generator = torch.Generator().manual_seed(7 + config.draw)
        shape = (len(sites), MOST_B, MOST_T, max(site.units for site in sites))
        self.keep = torch.rand(shape, generator=generator) < config.keep
        weight = 0.3 + 1.4 * torch.rand(shape, generator=generator)
        self.weight = nn.Parameter(weight) if config.soft else None

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        batch, length = hidden_BTD.shape[:2]
        place = self.sites.index(site)
        if self.config.granularity != "token":
            length = 1
        units = site.units
        weight = self.keep[place, :batch, :length, :units].to(hidden_BTD.dtype)
        if self.config.granularity == "batch":
            weight = weight[:1].expand(batch, 1, units)
        if self.weight is not None:
            weight = weight * self.weight[place, :batch, :length, :units]
        return Route(site, weight)


def fixed_router() -> AbstractContextManager[None]:
    """The kind ``fixed`` exists inside."""
    return ROUTERS.lent("fixed", FixedRouter)
