"""Small modules beside a host's own: LoRA on its linear layers, or a bottleneck after a block.

LoRA (Hu et al. 2021, arXiv 2106.09685): unit u adds s B_u A_u x to a linear layer's W x, with A_u
(r, in) and B_u (out, r); B starts at 0, so a new unit changes nothing. Bottleneck (Houlsby et al.
2019, arXiv 1902.00751): unit u adds U_u gelu(D_u norm(h)) to a block's result h, with U at 0 first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraBank(nn.Module):
    """The units of one block: for each of its target layers, all A and all B.

    shapes: target -> (in, out). scale: s.
    """

    def __init__(
        self, units: int, rank: int, scale: float, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.ParameterDict(
            {name: torch.randn(units, rank, wide) / wide**0.5 for name, (wide, _) in shapes.items()}
        )
        self.b = nn.ParameterDict(
            {name: torch.zeros(units, out, rank) for name, (_, out) in shapes.items()}
        )

    def change(self, target: str, unit: int, rows_ND: Tensor) -> Tensor:
        """What a unit adds to a target layer's result for some of its rows, (N, out)."""
        a, b = self.a[target][unit], self.b[target][unit]
        dtype = rows_ND.dtype
        return self.scale * F.linear(F.linear(rows_ND, a.to(dtype)), b.to(dtype))

    def flops(self) -> float:
        """Work of one unit for one token, in FLOPs."""
        return float(
            sum(2 * a[0].numel() + 2 * self.b[name][0].numel() for name, a in self.a.items())
        )


class BottleneckBank(nn.Module):
    """The units of one block, after it."""

    def __init__(self, units: int, rank: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(units, rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(units, width, rank))

    def change(self, unit: int, rows_ND: Tensor) -> Tensor:
        """What a unit adds to the block's result for some of its rows, (N, D)."""
        dtype = rows_ND.dtype
        scaled = F.layer_norm(rows_ND, rows_ND.shape[-1:])
        inner = F.gelu(F.linear(scaled, self.down[unit].to(dtype)))
        return F.linear(inner, self.up[unit].to(dtype))

    def flops(self) -> float:
        """Work of one unit for one token, in FLOPs."""
        return float(2 * self.down[0].numel() + 2 * self.up[0].numel())
