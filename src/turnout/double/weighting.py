"""Weights of the losses of several tasks."""

from __future__ import annotations

from torch import Tensor

from turnout.double.config import TasksTrainConfig
from turnout.units.task_heads import Head


def weighed(loss: Tensor, name: str, head: Head, config: TasksTrainConfig) -> Tensor:
    """The loss of one task as it counts. ``fixed``: times its weight in the recipe, 1 where it says
    nothing. ``uncertainty``: exp(-s) L + s / 2 with a learned s for each task (Kendall, Gal and
    Cipolla 2018, arXiv 1705.07115: s is their log sigma squared; the second term keeps weights from
    falling to 0)."""
    if config.weighting == "fixed":
        return loss * config.weights.get(name, 1.0)
    return (-head.log_variance).exp() * loss + head.log_variance / 2
