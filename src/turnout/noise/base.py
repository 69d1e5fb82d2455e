"""Trained noise: what every kind has. Shape letters: as in ``turnout.route``; H heads, Q queries,
K keys, R rows (tokens, packed flat)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from turnout.flow import Flow, hash_bits
from turnout.objectives.kl import gaussian_kl

Positive = Annotated[float, Field(gt=0.0)]
LEAST = 1e-8  # of sigma, so that its logarithm is finite


class NoiseConfig(BaseModel):
    """Which blocks get noise, and how it starts.

    layers: these blocks only; negative numbers count from the end. hold_first, hold_last: blocks
    at the ends without noise. stack: in models that have both. per: ``token`` draws for each token
    (for each pair of tokens in attention), ``sequence`` once a text, ``forward`` once a pass for
    all its texts (for a whole call of ``generate``). start: first sigma; prior: sigma of the prior;
    both as a part of the size of what the noise is added to. mean: learn a mean too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    layers: tuple[int, ...] | None = None
    hold_first: Annotated[int, Field(ge=0)] = 0
    hold_last: Annotated[int, Field(ge=0)] = 0
    stack: Literal["encoder", "decoder"] | None = None
    per: Literal["token", "sequence", "forward"] = "token"
    start: Positive = 0.05
    prior: Positive = 0.1
    mean: bool = True

    def covers(self, stack: str, layer: int, depth: int) -> bool:
        """Does a block get this noise."""
        if self.stack is not None and stack != self.stack:
            return False
        if not self.hold_first <= layer < depth - self.hold_last:
            return False
        return self.layers is None or layer in {n % depth for n in self.layers}


@dataclass(frozen=True)
class NoisePlace:
    """The block that noise is in. width: of its states. heads: of the queries; head_width: of one
    head (0 = not needed)."""

    stack: str
    layer: int
    width: int
    heads: int
    head_width: int = 0

    @property
    def key(self) -> str:
        """Stack and layer, as a site's ``place``."""
        return f"{self.stack}.{self.layer}"


class Noise(nn.Module, ABC):
    """A trained distribution N(mu, sigma^2) in one block. Final classes set ``Config`` and
    ``number`` (their own salt) and write ``mean_square``.

    rho: sigma = softplus(rho), relative to ``size``, the measured size of what the noise is added
    to (1 until ``turnout.size_noise`` measures it). meter: sum of squares and count while that
    happens; None = it does not.
    """

    Config: ClassVar[type[NoiseConfig]]
    number: ClassVar[int]
    size: Tensor

    def __init__(self, config: NoiseConfig, place: NoisePlace, elements: int, sizes: int) -> None:
        super().__init__()
        self.config, self.place = config, place
        self.rho = nn.Parameter(torch.full((elements,), _inverse_softplus(config.start)))
        self.register_buffer("size", torch.ones(sizes))
        self.meter: tuple[Tensor, Tensor] | None = None

    @property
    def sigma(self) -> Tensor:
        """Relative sigma of each element, above 0."""
        return F.softplus(self.rho.float()) + LEAST

    @abstractmethod
    def mean_square(self, flow: Flow) -> Tensor:
        """The square of the relative mean of each element, in a training pass."""

    def kl(self, flow: Flow) -> Tensor:
        """Divergence from the prior of each element, in nats, for a training pass."""
        return gaussian_kl(self.mean_square(flow), self.sigma, self.config.prior)

    def keys_B(self, flow: Flow, batch: int, device: torch.device) -> Tensor:
        """One int64 key a sequence for this place, the same for all where a pass draws once."""
        if self.config.per == "forward":
            keys_B = torch.full((batch,), flow.seed, dtype=torch.int64, device=device)
        else:
            keys_B = flow.keys_B(batch, device)
        side = self.place.stack != "encoder"
        # far from the salts of routers, which count from 0
        return hash_bits(keys_B, (1 << 40) + (self.place.layer << 8) + self.number * 2 + side)

    def start_meter(self) -> None:
        """Measure from now on what noise would be added to."""
        self.meter = torch.zeros_like(self.size), torch.zeros_like(self.size)

    def note(self, square: Tensor, count: Tensor) -> None:
        """Sum of squares and number of values of one pass, of the shape of ``size``."""
        assert self.meter is not None
        self.meter = self.meter[0] + square, self.meter[1] + count

    def stop_meter(self, keep: bool) -> None:
        """Take what was measured as the size, if asked to and if anything was seen."""
        if keep and self.meter is not None:
            square, count = self.meter
            found = (square / count.clamp_min(1.0)).sqrt()
            self.size.copy_(torch.where(found > 0, found, self.size))
        self.meter = None


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
