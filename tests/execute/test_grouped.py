"""Products of groups: both ways agree, forward and backward, on slices of one matrix too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from turnout.execute import grouped as module
from turnout.execute.grouped import grouped, loop, torch_grouped

COUNTS = (40, 0, 17, 71)  # a group may be empty


def tensors(slices: bool) -> tuple[Tensor, Tensor]:
    """Rows (P, D), and four matrices (E, F, D): apart, or slices of one host matrix (F, E x D)."""
    generator = torch.Generator().manual_seed(0)
    x_PD = torch.randn(sum(COUNTS), 32, generator=generator).requires_grad_()
    if slices:
        whole = torch.randn(24, 4 * 32, generator=generator).requires_grad_()
        return x_PD, whole.view(24, 4, 32).permute(1, 0, 2)
    return x_PD, torch.randn(4, 24, 32, generator=generator).requires_grad_()


def by_hand(x_PD: Tensor, weight_EFD: Tensor) -> Tensor:
    parts = [p @ w.t() for p, w in zip(x_PD.split(COUNTS), weight_EFD, strict=True)]
    return torch.cat(parts)


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("way", [loop, torch_grouped, grouped])
def test_every_way_is_the_product(way: Callable[..., Tensor], slices: bool) -> None:
    x_PD, weight_EFD = tensors(slices)
    weight_PF = torch.randn(sum(COUNTS), 24, generator=torch.Generator().manual_seed(1))
    found, wanted = way(x_PD, weight_EFD, COUNTS), by_hand(x_PD, weight_EFD)
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad((found * weight_PF).sum(), (x_PD, weight_EFD))
    theirs = torch.autograd.grad((wanted * weight_PF).sum(), (x_PD, weight_EFD))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_both_ways_are_timed_once_for_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def faster(*args: object) -> Callable[..., Tensor]:
        asked.append(bool(args[-1]))
        return loop

    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(module, "_faster", faster)
    x_PD, weight_EFD = tensors(slices=True)
    for _ in range(2):
        grouped(x_PD, weight_EFD, COUNTS)
        with torch.no_grad():
            grouped(x_PD, weight_EFD, COUNTS)
    assert asked == [True, False]  # with a backward pass, and without
