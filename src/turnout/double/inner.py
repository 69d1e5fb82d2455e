"""Classifiers at inner layers: while a model is trained, each block but the last answers too.

Deep supervision (Lee et al. 2015, arXiv 1409.5185: their companion objectives are our inner losses,
one weight for all). The classifiers are gone once the training is done.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.tasks_model import TasksModel


class InnerStates:
    """What comes out of each block but the last of a model in training."""

    def __init__(self, model: TasksModel) -> None:
        self.states: dict[int, Tensor] = {}
        self._handles = [
            view.module.register_forward_hook(functools.partial(self._keep, view.layer))
            for view in blocks_of(model, find_family(model))
            if view.layer < view.depth - 1
        ]

    def _keep(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        if module.training:  # a block that is run again, to save memory, gives the same once more
            self.states[layer] = output[0] if isinstance(output, tuple) else output

    def loss(
        self, model: TasksModel, name: str, mask_BT: Tensor | None, labels: Tensor
    ) -> Tensor | None:
        """Mean loss of a task's inner classifiers in the last pass; None = it has none."""
        assert model.inner is not None
        states, self.states = self.states, {}
        if name not in model.inner.tasks:
            return None
        before = 0 if model.prompt is None else model.prompt.states
        heads: Any = model.inner.tasks[name]
        losses = []
        for layer, state_BTD in sorted(states.items()):
            rows = state_BTD[:, before:]
            head = heads[layer]
            rows = rows if head.config.per_token else model.pooled(rows, mask_BT)
            losses.append(head.loss(head(rows), labels))
        return torch.stack(losses).mean() if losses else None

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
