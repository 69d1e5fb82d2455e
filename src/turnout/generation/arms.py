"""Ways of making a model's texts differ: an arm is one of them at one value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from turnout.errors import UserError
from turnout.generation.dials import has_noise, routing_of
from turnout.generation.settings import WriteSettings

FIELDS = {
    "temperature": "temperature",
    "top-p": "top_p",
    "min-p": "min_p",
    "budget": "budget",
    "noise": "noise",
}
DROPOUT = "dropout"
DEFAULT = ("temperature=0.7,1,1.3", "top-p=0.8,0.95", "min-p=0.05,0.1")
ROUTED, NOISY = "budget=0.5,0.75", "noise=0.5,1"


@dataclass(frozen=True)
class Arm:
    """kind: temperature, top-p, min-p, dropout, budget or noise."""

    kind: str
    value: float

    def settings(self, plain: WriteSettings) -> WriteSettings:
        """Plain settings but for this arm's."""
        return plain if self.kind == DROPOUT else plain.but(**{FIELDS[self.kind]: self.value})


def default_arms(model: Any) -> list[str]:
    """Those that fit a model."""
    routing = routing_of(model)
    routed = [ROUTED] if routing is not None and routing.sites else []
    return [*DEFAULT, *routed, *([NOISY] if has_noise(model) else [])]


def arms_of(texts: Sequence[str]) -> list[Arm]:
    """``kind=value,value`` texts as arms. Raises UserError for another form or kind."""
    found: list[Arm] = []
    for text in texts:
        kind, _, values = text.partition("=")
        if kind not in FIELDS and kind != DROPOUT:
            raise UserError(f"arms: found {text!r}; kinds are {', '.join([*FIELDS, DROPOUT])}")
        for value in values.split(","):
            try:
                arm = Arm(kind, float(value))
            except ValueError:
                raise UserError(f"arms: found {text!r}; wanted as {kind}=0.5,0.9") from None
            if kind == DROPOUT and not 0 <= arm.value < 1:
                raise UserError(f"arms: dropout must be from 0 to below 1, got {value}")
            arm.settings(WriteSettings())  # is the value allowed
            found.append(arm)
    return list(dict.fromkeys(found))


@contextmanager
def dropping(model: nn.Module, rate: float) -> Iterator[None]:
    """Plain dropout is left on inside, at this rate: in the host's dropout modules, and on
    attention where a host has it as a number (Monte Carlo dropout, Gal and Ghahramani 2016, arXiv
    1506.02142). Each step draws anew. Raises UserError for a host without any."""
    layers: list[Any] = [each for each in model.modules() if isinstance(each, nn.Dropout)]
    attentions: list[Any] = [
        each
        for each in model.modules()
        if isinstance(getattr(each, "attention_dropout", None), float | int)
    ]
    if not layers and not attentions:
        raise UserError("arms: dropout: this host has no dropout to leave on")
    before = [(each, each.p) for each in layers]
    before_attention = [(each, each.attention_dropout, each.training) for each in attentions]
    try:
        for each in layers:
            each.p, each.training = rate, True
        for each in attentions:  # this module alone, and not what is inside of it
            each.attention_dropout, each.training = rate, True
        yield
    finally:
        for each, p in before:
            each.p, each.training = p, False
        for each, p, training in before_attention:
            each.attention_dropout, each.training = p, training
