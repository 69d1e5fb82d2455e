"""A first part of the training in which all units of a block learn as one.

Branch-train-merge (Li et al. 2022, arXiv 2208.03306) trains a seed model on all of the data; then
it is copied, and each copy learns its own part: experts that begin apart see too little. Here the
units begin alike, and each takes the sum of all their gradients, so they stay alike, their moments
in the optimizer too, and are one unit that has seen every text. From then on each learns alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from turnout.execute.routing import Routing


class SeedPhase(TrainerCallback):
    """Keeps the units of each block alike for a share of the steps. Units: adapters, copied
    experts."""

    def __init__(self, routing: Routing, share: float) -> None:
        self.banks = [bank for bank in routing.units.parameters() if bank.requires_grad]
        self.share = share

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            for bank_U in self.banks:
                bank_U.copy_(bank_U[:1].clone())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < self.share * state.max_steps:
            for bank_U in self.banks:
                if bank_U.grad is not None:
                    bank_U.grad.copy_(bank_U.grad.sum(0, keepdim=True))
