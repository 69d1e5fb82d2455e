"""Routed classes for a host's modules."""

from __future__ import annotations

import torch
from torch import nn

from turnout.hosts.swap import restore, swap, swapped


class _Mixin(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_one_routed_class_for_each_host_class() -> None:
    cls = swapped(nn.Identity, _Mixin)
    assert cls is swapped(nn.Identity, _Mixin) and issubclass(cls, nn.Identity)
    assert (cls.__name__, cls.__module__) == ("Identity", nn.Identity.__module__)


def test_swap_and_restore() -> None:
    module = nn.Identity()
    swap(module, _Mixin)
    assert module(torch.zeros(1)) == 1
    restore(module)
    restore(module)  # nothing to undo
    assert type(module) is nn.Identity and module(torch.zeros(1)) == 0
