"""The routing layer of double routing, y = head(router(backbone(x))): units before a task's head.

Unit u adds s_u relu(W2_u relu(W1_u n(h) + b1_u) + b2_u) to what a head reads, h: linear, ReLU,
linear, ReLU, residual; n normalises. The scale s_u is a number that starts at 0 (ReZero,
Bachlechner et al. 2020, arXiv 2003.04887), so that a new unit changes nothing and yet has a
gradient: matrices of zeros would leave both ReLUs without one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class OutputBank(nn.Module):
    """The units. width: of the backbone, D; inner: of the layer between, H."""

    def __init__(self, units: int, inner: int, width: int) -> None:
        super().__init__()
        # each unit has tensors of its own: AdamW follows a gradient of 0, but not one that is none
        first = [torch.randn(inner, width) * (2 / width) ** 0.5 for _ in range(units)]
        second = [torch.randn(width, inner) * (2 / inner) ** 0.5 for _ in range(units)]
        self.first, self.second = nn.ParameterList(first), nn.ParameterList(second)
        self.first_bias = nn.ParameterList(torch.zeros(inner) for _ in range(units))
        self.second_bias = nn.ParameterList(torch.zeros(width) for _ in range(units))
        self.scale = nn.ParameterList(torch.zeros(()) for _ in range(units))

    def change(self, unit: int, rows_ND: Tensor) -> Tensor:
        """What a unit adds to some rows, (N, D)."""
        if not len(rows_ND) and not (dist.is_available() and dist.is_initialized()):
            return rows_ND  # several processes must all have a gradient
        dtype = rows_ND.dtype
        normal = F.layer_norm(rows_ND, rows_ND.shape[-1:])
        first, second = self.first[unit].to(dtype), self.second[unit].to(dtype)
        inner = F.linear(normal, first, self.first_bias[unit].to(dtype)).relu()
        out = F.linear(inner, second, self.second_bias[unit].to(dtype)).relu()
        return self.scale[unit].to(dtype) * out

    def flops(self) -> float:
        """Work of one unit for one row, in FLOPs."""
        return float(2 * self.first[0].numel() + 2 * self.second[0].numel())


class Reader(nn.Module):
    """Where the routing layer stands in a model of several tasks: between backbone and heads."""

    def forward(
        self, rows_BTD: Tensor, mask_BT: Tensor | None, task: int, index_B: Tensor | None
    ) -> Tensor:
        """What a head reads, (B, T, D), T = 1 for a whole text. mask_BT: real tokens, None = all.
        index_B: places of these texts in the pass, None = all of them, in order."""
        return rows_BTD
