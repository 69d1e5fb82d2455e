"""What a routed block is told when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.cache_utils import Cache

from turnout.execute.scope import Scope, Stream
from turnout.noise.attention import AttentionNoise
from turnout.route import Site
from turnout.units.adapters import BottleneckBank

if TYPE_CHECKING:
    from turnout.execute.routing import Routing


def cache_of(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Cache | None:
    """The key-value cache that a block is called with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)


@dataclass(eq=False)
class BlockHandle:
    """What a routed block knows: its sites, its sub-blocks' scopes, and the routing of the model.

    must_enter: the block returns more than the hidden state, so it runs even with no rows.
    hide: skipped tokens are removed from attention. watch: whose attention a router must see.
    whole_heads: attention needs projections in full width, whatever heads run.
    bottleneck: the adapters after the block, where it has such. copies: its experts stand in place
    of the host's network; averages: with weights that are scaled to add up to 1. attends: the
    module with the queries of its attention.
    """

    routing: Routing
    stack: str
    layer: int
    depth: int
    sites: dict[str, Site]
    must_enter: bool
    hide: bool
    watch: str | None = None
    stream: Stream = field(default_factory=Stream)
    scopes: dict[str, Scope] = field(default_factory=dict)
    bottleneck: BottleneckBank | None = None
    copies: bool = False
    averages: bool = False
    whole_heads: bool = False
    noisy: bool = False
    attends: nn.Module | None = None
    logit_noise: AttentionNoise | None = None
