"""Scores to weights. Pure functions; a weight of 0 means that the unit does not run.

All take ``score`` of any shape with the units last and return a tensor of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

BELOW = 0.01  # of a step between ranks


def threshold(score: Tensor, level: float | Tensor) -> Tensor:
    """1 where the score passes the level (strictly), else 0."""
    return (score > level).to(score.dtype)


def rank(value: Tensor, dim: int = -1, valid: Tensor | None = None) -> Tensor:
    """Nearly 1 for the largest, falling in equal steps to nearly 1 / n; ties to the first; 0 where
    not ``valid``.

    What passes a level of 1 - k / n are the k largest, so top-k is a threshold on the rank. Ranks
    lie a hundredth of a step below such levels, or rounding would decide.
    """
    if valid is not None:
        value = value.masked_fill(~valid, -torch.inf)
    order = value.argsort(dim=dim, descending=True, stable=True)
    shape = [1] * value.ndim
    shape[dim] = value.shape[dim]
    places = torch.arange(value.shape[dim], device=value.device).view(shape).expand_as(order)
    place = torch.empty_like(order).scatter_(dim, order, places)
    if valid is None:
        return 1.0 - (place + BELOW) / value.shape[dim]
    count = valid.sum(dim, keepdim=True).clamp_min(1)
    return (1.0 - (place + BELOW) / count).masked_fill(~valid, 0.0)


def sample(probability: Tensor, uniform: Tensor) -> Tensor:
    """1 with the given probability: an independent Bernoulli draw from ``uniform`` in [0, 1)."""
    return (uniform < probability).to(probability.dtype)


def straight_through(hard: Tensor, score: Tensor) -> Tensor:
    """Forward value ``hard``, gradient of ``score`` (Bengio et al. 2013, arXiv 1308.3432).

    The value is exactly ``hard``: (score - score) is 0 for every finite score.
    """
    return hard.detach() + (score - score.detach())
