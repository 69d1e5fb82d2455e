"""Run adapters for the rows that chose them, beside the host's own layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from turnout.execute.head_leaves import HeadLeaf
from turnout.execute.leaves import (
    CloseLeaf,
    FusedLeaf,
    OpenLeaf,
    RoutedLeaf,
    VisibleLeaf,
)
from turnout.execute.rows import gather, gather_round, scatter
from turnout.execute.scope import Scope, is_reference
from turnout.units.adapters import BottleneckBank, LoraBank


@dataclass(eq=False)
class AdapterPlan:
    """Which units run for which rows. weight_BTU: their weights, T = 1 where sequences choose; 0 =
    does not run. like_BTD: the full shape of the block's rows."""

    weight_BTU: Tensor
    like_BTD: Tensor

    def weight_RU(self, index_N: Tensor | None) -> Tensor:
        """Weights of all rows (B * T, U), or of packed ones (N, U)."""
        batch, length = self.like_BTD.shape[:2]
        units = self.weight_BTU.shape[-1]
        full = self.weight_BTU.expand(batch, length, units).reshape(-1, units)
        return full if index_N is None else full.index_select(0, index_N)

    def add(self, out: Tensor, x: Tensor, weight_RU: Tensor, change: Any) -> Tensor:
        """out (..., O) plus the weighted changes that units make of their rows of x (..., D)."""
        flat_RO, flat_RD = out.reshape(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        for unit in range(weight_RU.shape[-1]):
            if is_reference():
                full_RO = change(unit, flat_RD) * weight_RU[:, unit, None].to(flat_RO.dtype)
                flat_RO = flat_RO + full_RO
                continue
            index = (weight_RU[:, unit].detach() != 0).nonzero().squeeze(1)
            found_NO = change(unit, gather_round(flat_RD[None], index))[: len(index)]
            weight_N = weight_RU[:, unit].index_select(0, index)
            change_NO = (found_NO * weight_N[:, None].to(found_NO.dtype)).to(flat_RO.dtype)
            flat_RO = flat_RO.index_add(0, index, change_NO)
        return flat_RO.view(out.shape)


class AdapterLeaf(RoutedLeaf):
    """A linear layer with LoRA units beside it."""

    _turnout_adapters: tuple[Scope, LoraBank, str]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = super().forward(x, *args, **kwargs)
        scope, bank, target = self._turnout_adapters
        plan = scope.adapters
        if plan is None:
            return out
        index_N = scope.index_N
        packed = index_N is not None and x.ndim == 2 and len(x) == len(index_N)
        if isinstance(self, OpenLeaf) and index_N is not None and not (packed or is_reference()):
            x, packed = gather(x, index_N), True  # as the host's own matrix took them
        weight_RU = self._weighed(plan.weight_RU(index_N if packed else None), packed)
        seen = isinstance(self, VisibleLeaf | FusedLeaf) and not scope.hide
        if index_N is not None and not packed and not seen:  # skipped rows add nothing
            ran_R1 = weight_RU.new_zeros(len(weight_RU), 1).index_fill(0, index_N, 1.0)
            weight_RU = weight_RU * ran_R1

        def change(unit: int, rows: Tensor) -> Tensor:
            return bank.change(target, unit, rows)

        if isinstance(self, CloseLeaf) and packed and index_N is not None:
            none = out.new_zeros(len(x), out.shape[-1])  # rows are packed here, the result is not
            return out + scatter(plan.add(none, x, weight_RU, change), index_N, out)
        if not isinstance(self, HeadLeaf) or self.heads is None:
            return plan.add(out, x, weight_RU, change)
        x = self.widened(self.heads, x)  # units know nothing of the slots of heads
        none = out.new_zeros(*x.shape[:-1], bank.b[target].shape[1])
        return out + self.narrowed(self.heads, plan.add(none, x, weight_RU, change))

    def _weighed(self, weight_RU: Tensor, packed: bool) -> Tensor:
        """Weights of units beside the leaf that ends a sub-block: what they add is part of the
        change that the sub-block's router weighs."""
        index_N, weight_N = self._turnout_scope.index_N, self._turnout_scope.weight_N
        if index_N is None or weight_N is None or not self._turnout_last:
            return weight_RU
        weight_N = weight_N.to(weight_RU.dtype)
        if not packed:
            weight_N = weight_RU.new_ones(len(weight_RU)).index_copy(0, index_N, weight_N)
        return weight_RU * weight_N[:, None]


def add_bottleneck(bank: BottleneckBank, plan: AdapterPlan, out: Any, ran_BT: Tensor | None) -> Any:
    """A block's result with its bottleneck units added, where the block ran."""
    hidden, *rest = out if isinstance(out, tuple) else (out,)
    weight_RU = plan.weight_RU(None)
    if ran_BT is not None:
        weight_RU = weight_RU * ran_BT.expand(hidden.shape[:2]).reshape(-1, 1).to(weight_RU.dtype)
    hidden = plan.add(hidden, hidden, weight_RU, bank.change)
    return (hidden, *rest) if rest else hidden
