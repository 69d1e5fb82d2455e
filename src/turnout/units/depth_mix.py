"""One state out of those of all layers: what a head on a frozen backbone reads.

What a task needs may lie in a middle layer, tags of words most of all, and a backbone that stays as
it is cannot bring it to the top. So a head weighs the layers, h = g sum_l softmax(w)_l n(h_l), as
ELMo does (Peters et al. 2018, arXiv 1802.05365: their s_j is softmax(w)_l, gamma our g; n is a norm
without weights). At first all layers count alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DepthMix(nn.Module):
    """The weights of one head. states: how many to mix, that of the embeddings included."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(states))
        self.scale = nn.Parameter(torch.ones(()))

    def shares(self) -> Tensor:
        """How much each state counts, (L,); they add up to 1."""
        return self.weight.softmax(0)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """(B, T, D) of each of L layers to one (B, T, D)."""
        if len(states) != len(self.weight):
            raise ValueError(f"{len(self.weight)} layers are mixed, and {len(states)} were given")
        width = states[0].shape[-1:]
        weights = (self.scale * self.shares()).to(states[0].dtype).unbind()
        mixed = weights[0] * F.layer_norm(states[0], width)
        for weight, state in zip(weights[1:], states[1:], strict=True):
            mixed = mixed + weight * F.layer_norm(state, width)
        return mixed
