"""Plain random skipping at a given rate: the baseline that every comparison must contain.

A learned router that does not beat it has learned nothing (THOR, arXiv 2110.04260, found learned
gates no better than random ones). As a training method it is LayerDrop (arXiv 1909.11556).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from turnout import select
from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers.base import Router, RouterConfig


class RandomSkipConfig(RouterConfig):
    """rate: probability to skip a unit, in training and inference; a budget below 1 replaces it
    in inference by 1 - budget."""

    kind: Literal["random-skip"] = "random-skip"
    rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2


class RandomSkipRouter(Router):
    """Skips each unit with the same probability, independently."""

    pools = False
    Config: ClassVar[type[RouterConfig]] = RandomSkipConfig
    config: RandomSkipConfig

    def draws(self, budget: float) -> bool:
        return budget < 1 or 0 < self.config.rate < 1

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        rate = self.config.rate if flow.training or flow.budget >= 1 else 1 - flow.budget
        uniform_BTU = self.uniform(site, hidden_BTD, flow, 2)
        return Route(site, select.sample(torch.full_like(uniform_BTU, 1 - rate), uniform_BTU))
