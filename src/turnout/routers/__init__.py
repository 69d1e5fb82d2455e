"""DECIDE: one file, one router. A new router is one file and one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from turnout.registry import Registry
from turnout.routers.attention import AttentionConfig, AttentionRouter
from turnout.routers.base import HostShape as HostShape
from turnout.routers.base import Router as Router
from turnout.routers.base import RouterConfig as RouterConfig
from turnout.routers.cluster import ClusterConfig, ClusterRouter
from turnout.routers.exit import ExitConfig, ExitRouter
from turnout.routers.gate import GateConfig, GateRouter
from turnout.routers.mixture import MixtureConfig, MixtureRouter
from turnout.routers.policy import PolicyConfig, PolicyRouter
from turnout.routers.q_learning import QLearningConfig, QLearningRouter
from turnout.routers.random_jump import RandomJumpConfig, RandomJumpRouter
from turnout.routers.random_skip import RandomSkipConfig, RandomSkipRouter
from turnout.routers.random_unit import RandomUnitConfig, RandomUnitRouter
from turnout.routers.token_attention import TokenAttentionConfig, TokenAttentionRouter
from turnout.routers.token_exit import TokenExitConfig, TokenExitRouter

ROUTERS: Registry[type[Router]] = Registry("router")
for _router in (
    AttentionRouter,
    ClusterRouter,
    ExitRouter,
    GateRouter,
    MixtureRouter,
    PolicyRouter,
    QLearningRouter,
    RandomJumpRouter,
    RandomSkipRouter,
    RandomUnitRouter,
    TokenAttentionRouter,
    TokenExitRouter,
):
    ROUTERS.add(_router.Config.model_fields["kind"].default, _router)

AnyRouterConfig = Annotated[
    AttentionConfig
    | ClusterConfig
    | ExitConfig
    | GateConfig
    | MixtureConfig
    | PolicyConfig
    | QLearningConfig
    | RandomJumpConfig
    | RandomSkipConfig
    | RandomUnitConfig
    | TokenAttentionConfig
    | TokenExitConfig,
    Field(discriminator="kind"),
]
