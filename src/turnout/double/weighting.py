"""Weights of the losses of several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from turnout.errors import UserError


class FixedWeights(nn.Module):
    """As the recipe says; 1 where it says nothing. Raises UserError for an unknown task."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__()
        unknown = [name for name in weights if name not in tasks]
        if unknown:
            raise UserError(
                f"train.weights: no task {unknown[0]!r}; the tasks are {', '.join(tasks)}"
            )
        self.weights = [float(weights.get(name, 1.0)) for name in tasks]

    def forward(self, loss: Tensor, task: int) -> Tensor:
        """The weighted loss of one task."""
        return loss * self.weights[task]


class UncertaintyWeights(nn.Module):
    """exp(-s_t) L_t + s_t / 2 with a learned s_t for each task (Kendall, Gal and Cipolla 2018,
    arXiv 1705.07115: s is their log sigma squared; its term keeps weights from going to 0)."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, loss: Tensor, task: int) -> Tensor:
        """The weighted loss of one task."""
        log_variance = self.log_variance[task]
        return (-log_variance).exp() * loss + log_variance / 2
