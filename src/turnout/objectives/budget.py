"""Spend no more, and no less, than the budget."""

from __future__ import annotations

from torch import Tensor


def budget(share: Tensor, target: float) -> Tensor:
    """Squared distance of the spent share of work (scalar, 0..1) from its target.

    Minimal (0) at share = target; the gradient has the sign of (share - target). The share counts
    FLOPs, so closing a dear unit moves it more than closing a cheap one.
    """
    return (share - target) ** 2
