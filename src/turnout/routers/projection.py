"""Small maps from a state to scores: a linear one, an MLP, and a cell that runs along depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projection(nn.Module):
    """Scores of units from a state. Not an nn.Linear, so adapter tools leave it alone.

    The products run in the host's number format, to cost little beside a fast host; what is
    decided from them is float32. uneven: begin with random scores, not with equal ones.
    """

    def __init__(self, width: int, hidden: int | None, units: int, uneven: bool = False) -> None:
        super().__init__()
        inner = hidden or width
        self.inner = nn.Parameter(torch.randn(inner, width) / width**0.5) if hidden else None
        first = torch.randn if uneven else torch.zeros
        self.weight = nn.Parameter(first(units, inner) / inner**0.5)

    def forward(self, state: Tensor) -> Tensor:
        """(..., D) to (..., U)."""
        scaled = F.layer_norm(state, state.shape[-1:])
        if self.inner is not None:
            scaled = F.gelu(F.linear(scaled, self.inner.to(scaled.dtype)))
        return F.linear(scaled, self.weight.to(scaled.dtype)).float()


class DepthCell(nn.Module):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078) whose steps are the layers: it
    reads the state that enters each routed block and remembers those before. One for all layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.randn(3 * hidden, width) / width**0.5)
        self.recur = nn.Parameter(torch.randn(3 * hidden, hidden) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(3 * hidden))

    def forward(self, state: Tensor, before: Tensor | None) -> Tensor:
        """State (..., D) and memory (..., H), None at first, to the new memory (..., H)."""
        with torch.autocast(state.device.type, enabled=False):
            scaled = F.layer_norm(state.float(), state.shape[-1:])
            read = F.linear(scaled, self.read.float(), self.bias.float())
            if before is None:
                before = torch.zeros_like(read[..., : read.shape[-1] // 3])
            recur = F.linear(before, self.recur.float())
            reset_in, update_in, new_in = read.chunk(3, -1)
            reset_of, update_of, new_of = recur.chunk(3, -1)
            update = (update_in + update_of).sigmoid()
            new = (new_in + (reset_in + reset_of).sigmoid() * new_of).tanh()
            return new + update * (before - new)
