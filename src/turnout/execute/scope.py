"""What a routed block tells its leaves while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from turnout.errors import UserError
from turnout.flow import Flow

if TYPE_CHECKING:
    from turnout.execute.adapters import AdapterPlan
    from turnout.execute.experts import ExpertPlan
    from turnout.execute.heads import HeadPlan
    from turnout.execute.shorten import Short

_reference: ContextVar[bool] = ContextVar("turnout_reference", default=False)


@contextmanager
def reference_execution() -> Iterator[None]:
    """Run routed models by the definition (`execute.reference`) instead of the packed way."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def is_reference() -> bool:
    """Is the slow definition in force."""
    return _reference.get()


@dataclass(eq=False)
class Stream:
    """One block while it runs. state_BTD: what a post-norm leaf falls back to. flow: the pass.
    keep_B: which sequences run, None = all. short: what is left of them, None = all tokens."""

    state_BTD: Tensor | None = None
    flow: Flow | None = None
    keep_B: Tensor | None = None
    short: Short | None = None


@dataclass(eq=False)
class Scope:
    """The rows that one sub-block computes right now; ``index_N is None`` means all of them.

    weight_N: weights of those rows, applied by the sub-block's last leaf; None = all 1.
    heads, experts: which of them run, where a router chooses; None = all, as the host has them.
    adapters: which run beside the host's layers; None = none.
    hide: skipped rows need no keys and values either. known: keys and values are there already, of
    all rows. like_BTD: the full shape. leaves: where the
    sub-block's leaves were found: parent, name, leaf.
    """

    stream: Stream = field(default_factory=Stream)
    leaves: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    index_N: Tensor | None = None
    weight_N: Tensor | None = None
    heads: HeadPlan | None = None
    experts: ExpertPlan | None = None
    adapters: AdapterPlan | None = None
    hide: bool = False
    known: bool = False
    like_BTD: Tensor | None = None

    def check(self) -> None:
        """UserError where a leaf was replaced: its successor would compute the skipped rows too."""
        for parent, name, leaf in self.leaves:
            found = parent._modules.get(name)
            if found is not leaf:
                raise UserError(
                    f"{name} of {type(parent).__name__} is a {type(found).__name__} now, put there "
                    "after turnout.install (by PEFT?): uninstall, add adapters, then install"
                )

    def clear(self) -> None:
        """Back to: every row runs."""
        self.index_N = self.weight_N = self.like_BTD = None
        self.heads = self.experts = self.adapters = None
        self.hide = self.known = False
