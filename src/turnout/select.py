"""Scores to weights. Pure functions; a weight of 0 means that the unit does not run.

All take ``score`` of any shape with the units last and return a tensor of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(score: Tensor, level: float | Tensor) -> Tensor:
    """1 where the score passes the level (strictly), else 0."""
    return (score > level).to(score.dtype)


def top_k(score: Tensor, k: int) -> Tensor:
    """1 for the k best units, ties to the first. Raises ValueError unless 0 <= k <= units."""
    units = score.shape[-1]
    if not 0 <= k <= units:
        raise ValueError(f"top_k needs 0 <= k <= {units} units, got k={k}")
    order = torch.argsort(score, dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(score).scatter(-1, order, 1.0)


def sample(probability: Tensor, uniform: Tensor) -> Tensor:
    """1 with the given probability: an independent Bernoulli draw from ``uniform`` in [0, 1)."""
    return (uniform < probability).to(probability.dtype)


def epsilon_greedy(score: Tensor, epsilon: float, uniform: Tensor, explore: Tensor) -> Tensor:
    """The best unit, or with probability epsilon a random one.

    uniform (..., 1) decides whether to explore, explore (..., U) which unit is taken then.
    """
    take = torch.where(uniform < epsilon, explore, score)
    return top_k(take, 1)


def soft(score: Tensor) -> Tensor:
    """Softmax over units: everything runs, in proportion."""
    return score.softmax(-1)


def straight_through(hard: Tensor, score: Tensor) -> Tensor:
    """Forward value ``hard``, gradient of ``score`` (Bengio et al. 2013, arXiv 1308.3432).

    The value is exactly ``hard``: (score - score) is 0 for every finite score.
    """
    return hard.detach() + (score - score.detach())
