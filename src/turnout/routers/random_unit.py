"""A unit drawn at random for each input: routing without knowledge.

The baseline of routers that give an input a module of its own (adapters, copied experts, experts,
heads): the same units, the same work, and no reason for the choice. Drawn from the text alone a
text always has the same unit, as in hash routing (Roller et al. 2021, arXiv 2106.04426: their hash
of a token is one of the whole input here), so that units can be trained with it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from turnout import select
from turnout.errors import UserError
from turnout.flow import Flow, hash_uniform
from turnout.route import Route, Site
from turnout.routers.base import HostShape, Router, RouterConfig


class RandomUnitConfig(RouterConfig):
    """top: units that serve an input, with equal weights that add up to 1. fixed: the choice is a
    function of the text; False draws it anew each pass. seed: of the choice."""

    kind: Literal["random-unit"] = "random-unit"
    site: Literal["adapter", "expert", "head", "output"] = "adapter"
    granularity: Literal["sequence"] = "sequence"
    top: Annotated[int, Field(gt=0)] = 1
    fixed: bool = True
    seed: Annotated[int, Field(ge=0)] = 0


class RandomUnitRouter(Router):
    """Takes the same units at every site of a pass, for no reason."""

    Config: ClassVar[type[RouterConfig]] = RandomUnitConfig
    pools = False
    weighs = True
    config: RandomUnitConfig

    def __init__(self, config: RandomUnitConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__(config, sites, host)
        fewest = min(site.units for site in sites)
        if config.top > fewest:
            raise UserError(
                f"router 'random-unit': top {config.top} is more than the {fewest} units of a site"
            )

    def draws(self, budget: float) -> bool:
        return not self.config.fixed

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        keys_B = flow.keys_B(hidden_BTD.shape[0], hidden_BTD.device)
        if self.config.fixed:
            keys_B = keys_B - flow.seed
        keys_B = keys_B + self.config.seed
        draw_BU = torch.stack([hash_uniform(keys_B, 12, unit) for unit in range(site.units)], -1)
        keep_BU = select.threshold(select.rank(draw_BU), 1 - self.config.top / site.units)
        return Route(site, keep_BU[:, None] / self.config.top)
