"""What a router is: it looks at hidden states and decides which units run.

A router is a module with one method to write, ``decide``. It gets the state that enters a block
and the flow of this pass (mask, seed, budget, memory), and returns a Route. Everything random
comes from the flow, everything remembered goes into ``flow.memory``: a router has no hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import datasets
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from turnout.flow import Flow
from turnout.route import Granularity, Route, Site, SiteKind

Budget = Annotated[float, Field(ge=0.0, le=1.0)]


class RouterConfig(BaseModel):
    """Fields that every router has.

    layers: which blocks it serves (negative counts from the end); None = every block it may.
    hold_first, hold_last: blocks at the ends that always run.
    stack: which stack of an encoder-decoder; None = all.
    visible: skipped tokens keep their keys and values; False removes them (encoders only).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    site: SiteKind = "layer"
    granularity: Granularity = "sequence"
    layers: tuple[int, ...] | None = None
    hold_first: Annotated[int, Field(ge=0)] = 0
    hold_last: Annotated[int, Field(ge=0)] = 0
    stack: Literal["encoder", "decoder"] | None = None
    visible: bool = True

    def covers(self, site: Site) -> bool:
        """Does this router serve a site of the host."""
        if site.kind != self.site or (self.stack is not None and site.stack != self.stack):
            return False
        if not self.hold_first <= site.layer < site.depth - self.hold_last:
            return False
        if self.layers is None:
            return True
        return site.layer in {n % site.depth for n in self.layers}


class HostShape(BaseModel):
    """What a router may need to know of its host. labels: width of the head's logits, 0 if none.
    vocabulary: number of token ids, 0 if the host reads something else."""

    model_config = ConfigDict(frozen=True)

    hidden: int
    labels: int
    per_token: bool
    causal: bool
    vocabulary: int = 0


class Router(nn.Module, ABC):
    """Decides at the sites it serves. Final classes set ``Config`` and write ``decide``.

    levels: calibrated dial, pairs (share of the routed work, threshold on the score), share
    descending; empty = not calibrated, or a router whose dial needs none. scored: routes come from
    comparing a score with a threshold. ceiling: the largest score there can be. pools: decisions
    for a sequence are taken from a summary of all of its tokens. token_memory: names in
    ``flow.memory`` whose second dimension is T.
    """

    Config: ClassVar[type[RouterConfig]]
    scored: ClassVar[bool] = False
    pools: ClassVar[bool] = True
    token_memory: frozenset[str] = frozenset()

    def __init__(self, config: RouterConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__()
        self.config, self.sites, self.host = config, sites, host
        self.levels: list[tuple[float, float]] = []
        self.ceiling = 1.0

    @abstractmethod
    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        """The route at one site: weight_BTU with T = 1 for decisions per sequence or batch."""

    def draws(self, budget: float) -> bool:
        """Does another seed take other routes in inference at this budget; only random routers."""
        return False

    def study(self, rows: datasets.Dataset) -> None:
        """Learn from the encoded training rows, before training; most routers need not."""

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        """Objectives of its own for a training pass, by their name in the recipe; most have none.

        logits: the model's. teacher: the dense host's, where they are known.
        """
        return {}

    def finish(self, outputs: Any, flow: Flow) -> Any:
        """Change the model's outputs at the end of a pass; most routers leave them."""
        return outputs

    def answered(self, site: Site, flow: Flow) -> tuple[Tensor, Tensor] | None:
        """Which sequences are done for good after this site (B,), and everyone's logits so far."""
        return None

    def level(self, budget: float) -> float:
        """The threshold for a budget, interpolated in the calibrated table.

        A budget of 1 always means that everything runs; for an uncalibrated router the threshold
        is the part 1 - budget of its largest score.
        """
        if budget >= 1.0:
            return -1.0
        if not self.levels:
            return (1.0 - budget) * self.ceiling
        shares = [share for share, _ in self.levels]
        if budget >= shares[0]:
            return self.levels[0][1]
        for (high, at_high), (low, at_low) in zip(self.levels, self.levels[1:], strict=False):
            if low <= budget <= high:
                part = 0.0 if high == low else (high - budget) / (high - low)
                return at_high + part * (at_low - at_high)
        return self.levels[-1][1]


def masked_mean(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean over the real tokens, (B, D), in float32."""
    hidden = hidden_BTD.float()
    if mask_BT is None:
        return hidden.mean(1)
    weight_BT1 = mask_BT[:, :, None].float()
    return (hidden * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1.0)


def ones_route(site: Site, hidden_BTD: Tensor) -> Route:
    """Everything runs, decided per sequence."""
    return Route(site, torch.ones(hidden_BTD.shape[0], 1, site.units, device=hidden_BTD.device))
