"""Routes from a table: the same masks for us and for others."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from turnout.flow import Flow
from turnout.route import Route, Site
from turnout.routers import ROUTERS, Router, RouterConfig


class GivenConfig(RouterConfig):
    """Its table is set on the router."""

    kind: Literal["given"] = "given"
    granularity: Literal["token"] = "token"


class GivenRouter(Router):
    """runs_LBT: which layer runs for the token at which place of which row."""

    Config: ClassVar[type[RouterConfig]] = GivenConfig
    pools = False
    runs_LBT: Tensor

    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        place_BT = flow.place_BT(hidden_BTD, site.stack)
        runs_BT = self.runs_LBT[site.layer, : len(place_BT)].gather(1, place_BT)
        return Route(site, runs_BT[:, :, None].float())


def given_router() -> AbstractContextManager[None]:
    """The kind ``given`` exists inside."""
    return ROUTERS.lent("given", GivenRouter)


def masks(skip: float, layers: int, rows: int, places: int, seed: int) -> Tensor:
    """Each layer skips each token with the same chance: bool (L, B, T)."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(layers, rows, places, generator=drawn) >= skip


def set_masks(model: Any, runs_LBT: Tensor) -> None:
    """Of all given routers of a model."""
    for router in model.turnout.all_routers():
        router.runs_LBT = runs_LBT
