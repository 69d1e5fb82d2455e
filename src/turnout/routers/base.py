"""What a router is: it looks at hidden states and decides which units run.

A router is a module with one method to write, ``decide``. It gets the state that enters a block
and the flow of this pass (mask, seed, budget, memory), and returns a Route. Everything random
comes from the flow, everything remembered goes into ``flow.memory``: a router has no hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

import datasets
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from turnout.errors import UserError
from turnout.flow import Flow
from turnout.route import ADDED, Granularity, Route, Site, SiteKind

Target = Literal["query", "key", "value", "output", "in", "out"]
Budget = Annotated[float, Field(ge=0.0, le=1.0)]


class RouterConfig(BaseModel):
    """Fields that every router has.

    layers: which blocks it serves (negative counts from the end); None = every block it may.
    hold_first, hold_last: blocks at the ends that always run.
    stack: which stack of an encoder-decoder; None = all.
    learning_rate: of the router's own weights; None = the recipe's ``train.router_learning_rate``.
    visible: skipped tokens keep their keys and values; False removes them (encoders only).
    experts, split: at site ``expert``, how many experts share the neurons of each feed-forward
    network, and how the neurons are shared out (see units/experts.py); ``copied`` gives each expert
    all of them (see units/copies.py).
    adapters, form, rank, scale, targets: at site ``adapter``, how many stand in each block, of
    which form and width (see units/adapters.py); targets of LoRA among query, key, value, output
    (of attention), in, out (of the feed-forward network). At site ``output``, after the last block,
    ``adapters`` is the number of routing layers; inner: the width between their two matrices, None
    = the host's (see units/output.py).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    site: SiteKind = "layer"
    granularity: Granularity = "sequence"
    layers: tuple[int, ...] | None = None
    hold_first: Annotated[int, Field(ge=0)] = 0
    hold_last: Annotated[int, Field(ge=0)] = 0
    stack: Literal["encoder", "decoder"] | None = None
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    visible: bool = True
    experts: Annotated[int, Field(gt=1)] = 8
    adapters: Annotated[int, Field(gt=0)] = 4
    form: Literal["lora", "bottleneck"] = "lora"
    rank: Annotated[int, Field(gt=0)] = 8
    scale: Annotated[float, Field(gt=0.0)] = 2.0
    targets: tuple[Target, ...] = ("query", "value")
    inner: Annotated[int, Field(gt=0)] | None = None
    split: Literal["parameters", "coactivation", "importance", "random", "copied"] = "parameters"

    @model_validator(mode="after")
    def _hides(self) -> Self:
        if not self.visible and self.site not in ("layer", "attention"):
            raise ValueError(
                f"visible: false takes tokens out of attention, which site {self.site} does not "
                "touch: sites layer and attention only"
            )
        return self

    @model_validator(mode="after")
    def _ends(self) -> Self:
        held = self.layers is not None or self.hold_first or self.hold_last
        if self.site == "output" and held:
            raise ValueError("site output is after the last block: leave out layers and hold_*")
        return self

    @property
    def owns_units(self) -> bool:
        """Do its units have weights that the host lacks: adapters, copies of a network."""
        return self.site in ADDED or (self.site == "expert" and self.split == "copied")

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
    vocabulary: number of token ids, 0 if the host reads something else. tasks: names of those that
    a pass may ask for."""

    model_config = ConfigDict(frozen=True)

    hidden: int
    labels: int
    per_token: bool
    causal: bool
    vocabulary: int = 0
    tasks: tuple[str, ...] = ()


class Router(nn.Module, ABC):
    """Decides at the sites it serves. Final classes set ``Config`` and write ``decide``.

    levels: calibrated dial, pairs (share of the routed work, threshold on the score), share
    descending; empty = not calibrated, or a router whose dial needs none. scored: routes come from
    comparing a score with a threshold. learns_budget: training pulls its share of the work to the
    budget; others learn what to keep at any share. weighs: units that run have weights other than
    1. pools: decisions for a sequence are taken from a summary of all of its tokens. fits: must
    see embedded training rows before it can route; found: what that fit found. watch: the attention
    that it must see of the block before each site: that of the class token, or of all; None = none.
    reads_out: asks what the host would say if it stopped at a state (``flow.read_out``).
    reads_logits: its own losses look at the model's answers. ceiling: the largest score there can
    be. token_memory: names in ``flow.memory`` whose second
    dimension is T. done: part of the training that is over, 0..1.
    """

    Config: ClassVar[type[RouterConfig]]
    scored: bool = False
    learns_budget: bool = False
    weighs: bool = False
    pools: ClassVar[bool] = True
    fits: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = True
    watch: Literal["class", "all"] | None = None
    reads_out: bool = False
    token_memory: frozenset[str] = frozenset()

    def __init__(self, config: RouterConfig, sites: tuple[Site, ...], host: HostShape) -> None:
        super().__init__()
        self.config, self.sites, self.host = config, sites, host
        self.levels: list[tuple[float, float]] = []
        self.found: dict[str, Any] = {}
        self.done = 0.0
        self.ceiling = 1.0

    @abstractmethod
    def decide(self, site: Site, hidden_BTD: Tensor, flow: Flow) -> Route:
        """The route at one site: weight_BTU with T = 1 for decisions per sequence or batch."""

    def draws(self, budget: float) -> bool:
        """Does another seed take other routes in inference at this budget; only random routers."""
        return False

    def study(self, rows: datasets.Dataset) -> None:
        """Learn from the encoded training rows, before training; most routers need not."""

    def fit(self, pooled_ND: np.ndarray) -> str:
        """Fit to the embedded training rows, before training; returns what is worth saying. Only
        routers that say ``fits``."""
        raise NotImplementedError

    def losses(
        self, flow: Flow, logits: Tensor, labels: Tensor | None, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        """Objectives of its own for a training pass, by their name in the recipe; most have none.

        logits: the model's. teacher: the dense host's, where they are known. Routers that say
        ``reads_logits = False`` may be given empty ones: those of a language model are large.
        """
        return {}

    def finish(self, outputs: Any, flow: Flow) -> Any:
        """Change the model's outputs at the end of a pass; most routers leave them."""
        return outputs

    def answered(self, site: Site, flow: Flow) -> tuple[Tensor, Tensor] | None:
        """Which sequences are done for good after this site (B,), and everyone's logits so far."""
        return None

    def uniform(self, site: Site, hidden_BTD: Tensor, flow: Flow, *salts: int) -> Tensor:
        """A draw in [0, 1) for each unit at our granularity, (B, T or 1, U), by the pass's seed;
        each site draws apart from the others, whichever router serves them."""
        batch, parts = hidden_BTD.shape[0], []
        for unit in range(site.units):
            own = (*salts, site.salt, unit)
            if self.config.granularity == "token":
                parts.append(flow.uniform_BT(hidden_BTD, site, *own))
            else:
                parts.append(flow.uniform_B(batch, hidden_BTD.device, *own)[:, None])
        uniform_BTU = torch.stack(parts, -1)
        if self.config.granularity == "batch":
            uniform_BTU = uniform_BTU[:1].expand_as(uniform_BTU)
        return uniform_BTU

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


def peeks(router: Router) -> bool:
    """Would later tokens decide for earlier ones, in a decoder that predicts tokens."""
    whole = router.pools and router.config.granularity != "token"
    return whole and any(site.stack == "decoder" for site in router.sites)


def check_looks_back(routers: Iterable[Router], why: str) -> None:
    """Raise UserError where later tokens would decide for earlier ones. why: that is wrong here."""
    for router in routers:
        if peeks(router):
            raise UserError(
                f"router {router.config.kind!r} decides for a whole {router.config.granularity} "
                f"from all of its tokens, {why}: use granularity: token, or stack: encoder"
            )


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
