"""Give a host's modules routed classes, and their own back."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


@functools.cache
def swapped(cls: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """The routed class of a host class: one for each pair, with the host's names."""
    names: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    made = type(cls.__name__, (mixin, cls), names)
    made._turnout_host = cls  # type: ignore[attr-defined]
    return made


def swap(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Give a module instance its routed class."""
    module.__class__ = swapped(type(module), mixin)


def restore(module: nn.Module) -> None:
    """Give a module instance the host's class back."""
    while (host := type(module).__dict__.get("_turnout_host")) is not None:
        module.__class__ = host
