"""Run a part of a host's forward pass, from one block to another, with the host's own code.

The host's forward is called as it is. Blocks before the span hand their input on, the first block
of the span is given the state, and the block after the span stops the pass by an exception that
carries the state out. So embeddings, masks, rotary tables and heads stay the host's, and no
forward is written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from turnout.errors import UserError


@dataclass(frozen=True, eq=False)
class Span:
    """Blocks start .. stop - 1 of a stack, or to the end of the model with stop = None.

    hidden_BTD (B, T, D) replaces the input of block ``start``.
    """

    start: int
    stop: int | None
    hidden_BTD: Tensor | None = None


class SpanStop(Exception):
    """Carries the state out of the host's forward pass."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__("the end of a span of blocks was reached")
        self.hidden_BTD = hidden_BTD


def runs_in_parts(routing: Any) -> bool:
    """Can some blocks of a routed host run by themselves: it has one stack of blocks, which hand on
    one tensor."""
    stacks = list(routing.stacks.values())
    return len(stacks) == 1 and not stacks[0].tuple_output


def run_span(
    model: nn.Module,
    inputs: Mapping[str, Any],
    start: int,
    stop: int | None,
    hidden_BTD: Tensor | None = None,
) -> Any:
    """Run blocks start .. stop - 1 for all rows, without routing.

    Returns the state (B, T, D) after them. With stop = None the rest of the host runs too and
    its outputs are returned. Raises UserError for a span that begins within a host with two
    stacks, or whose blocks hand on more than one tensor.
    """
    routing: Any = model.turnout
    if start and not runs_in_parts(routing):
        raise UserError(
            f"{type(model).__name__}: only hosts with one stack of blocks that hand on one tensor "
            "can be run in parts"
        )
    routing.span = Span(start, stop, hidden_BTD)
    try:
        return model(**inputs)
    except SpanStop as end:
        return end.hidden_BTD
    finally:
        routing.span = None
        routing.close()
