"""The records in the middle: where a choice exists, what was chosen, and all choices of one pass.

Shape letters, used in names everywhere: B sequences, T tokens (1 = decided per sequence),
U units of a site, D hidden width, N active rows (tokens), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

SiteKind = Literal["layer", "attention", "ffn", "head", "expert", "adapter", "output"]
KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
# whose units the host lacks: they add to what it does
ADDED: frozenset[SiteKind] = frozenset({"adapter", "output"})
Granularity = Literal["batch", "sequence", "token"]


@dataclass(frozen=True)
class UnitCost:
    """Work of one unit, in floating point operations (a multiply and an add are two).

    row: per token that runs. idle: per token that is skipped but stays visible to others
    (its keys and values are still computed). pair: per query-key pair of a sequence in which
    anything runs. bytes: parameters that must be read when the unit runs at all.
    """

    row: float
    idle: float = 0.0
    pair: float = 0.0
    bytes: int = 0

    def part(self, units: int) -> UnitCost:
        """The work of one of several equal units."""
        return UnitCost(self.row / units, self.idle / units, self.pair / units, self.bytes // units)

    def __mul__(self, units: int) -> UnitCost:
        """The work of several such units."""
        return UnitCost(self.row * units, self.idle * units, self.pair * units, self.bytes * units)

    def __sub__(self, other: UnitCost) -> UnitCost:
        """The work that is left when a part of it is counted elsewhere."""
        return UnitCost(
            self.row - other.row,
            self.idle - other.idle,
            self.pair - other.pair,
            self.bytes - other.bytes,
        )


@dataclass(frozen=True)
class Site:
    """A place in a host model where a choice exists.

    key: unique name such as ``encoder.3.ffn``. layer: index of the block within its stack.
    depth: number of blocks in that stack. units: how many units can run here. together: how many of
    them a token runs when nothing is skipped (experts of a host that chooses some itself); 0 = all.
    """

    key: str
    kind: SiteKind
    stack: str
    layer: int
    depth: int
    units: int
    cost: UnitCost
    together: int = 0

    @property
    def place(self) -> str:
        """Stack and layer: the block that it is in."""
        return f"{self.stack}.{self.layer}"

    @property
    def salt(self) -> int:
        """A number of its own, that keeps random draws at one site apart from those at others."""
        side = 0 if self.stack == "encoder" else 1
        return (self.layer * len(KINDS) + KINDS.index(self.kind)) * 2 + side

    @property
    def whole(self) -> UnitCost:
        """The work of the site when nothing is skipped."""
        return self.cost * (self.together or self.units)


@dataclass(frozen=True, eq=False)
class Route:
    """What one router decided at one site in one forward pass.

    weight_BTU: weight of each unit; 0 means *that unit does not run*. score_BTU: what the
    decision was made from (a unit ran where its score passed the threshold), kept for
    objectives, calibration and plots. log_prob_BT: log-probability of a sampled decision.
    """

    site: Site
    weight_BTU: Tensor
    score_BTU: Tensor | None = None
    log_prob_BT: Tensor | None = None

    @property
    def active_BT(self) -> Tensor:
        """Bool: does any unit run for this sequence (T = 1) or token."""
        return (self.weight_BTU.detach() != 0).any(-1)

    @property
    def share_BT(self) -> Tensor:
        """How many units run, as a part of those that run when nothing is skipped."""
        most = self.site.together or self.site.units
        return (self.weight_BTU.detach() != 0).sum(-1).float() / most


class Trace(dict[str, Route]):
    """The routes of one forward pass by site key: assigned, never appended.

    A second run of the same pass (activation checkpointing) overwrites equal values, so
    nothing counts twice. ``mask_BT`` is the validity of tokens by stack, None = all valid.
    ``entered``: keys of sites whose attention ran for every sequence, those included in which
    nothing was chosen to run (a cache must be filled, or the block does more than this site).
    ``written``: keys of sites where nothing ran and every token's keys and values were written
    into a cache.
    ``memory``: what routers remembered in the pass, by site key and name; of traces that were
    collected by ``turnout.trace``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mask_BT: dict[str, Tensor | None] = {}
        self.shape_BT: dict[str, tuple[int, int]] = {}
        self.entered: set[str] = set()
        self.written: set[str] = set()
        self.memory: dict[tuple[str, str], Tensor] = {}

    def valid_BT(self, stack: str) -> Tensor:
        """Validity of each token of a stack, as bool (B, T)."""
        mask_BT = self.mask_BT[stack]
        if mask_BT is not None:
            return mask_BT
        some = next(route for route in self.values() if route.site.stack == stack)
        return torch.ones(self.shape_BT[stack], dtype=torch.bool, device=some.weight_BTU.device)
