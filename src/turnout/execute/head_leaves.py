"""Leaves of an attention sub-block whose heads are routed: see `execute.heads`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from turnout.execute.heads import HeadPlan
from turnout.execute.leaves import RoutedLeaf
from turnout.execute.rows import gather, scatter
from turnout.execute.scope import is_reference


class HeadLeaf(RoutedLeaf):
    """Base of the projections of a block whose heads are routed."""

    @property
    def _plan(self) -> HeadPlan | None:
        return None if is_reference() else self._turnout_scope.heads

    def _matrix(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight (out, in) and bias; None where a plan cannot slice them (adapters)."""
        if not isinstance(self, nn.Linear | Conv1D):
            return None
        host: Any = self
        return (host.weight.t() if isinstance(self, Conv1D) else host.weight), host.bias


class HeadQuery(HeadLeaf):
    """Query projection."""

    sparse = True

    def forward(self, x_BTD: Tensor) -> Tensor:
        plan = self._plan
        if plan is None or (plan.all_keys and not self.sparse):
            return super().forward(x_BTD)
        found = self._matrix()
        if found is None:
            return plan.take(super().forward(x_BTD))
        return plan.project(x_BTD, *found, sparse=self.sparse)


class HeadVisible(HeadQuery):
    """Key or value projection."""

    sparse = False


class HeadFused(HeadLeaf):
    """Query, key and value in one matrix, in this order."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        plan, found = self._plan, self._matrix()
        if plan is None or (plan.whole and found is None):
            return super().forward(x_BTD)
        if found is None:
            return torch.cat([plan.take(part) for part in super().forward(x_BTD).chunk(3, -1)], -1)
        weight, bias = found
        biases = (None, None, None) if bias is None else bias.chunk(3)
        parts = []
        for at, part in enumerate(zip(weight.chunk(3), biases, strict=True)):
            if at and plan.all_keys:
                parts.append(F.linear(x_BTD, *part))
            else:
                own = plan.project(x_BTD, *part, sparse=at == 0)
                parts.append(plan.widen(own) if plan.whole else own)
        return torch.cat(parts, -1)


class HeadMerge(HeadLeaf):
    """Output projection. Rows outside of the scope give zeros, as a change of nothing."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        plan, found, scope = self._plan, self._matrix(), self._turnout_scope
        if plan is None:
            out = super().forward(x_BTC)
        elif found is None:
            out = super().forward(plan.widen(x_BTC))
        else:
            out = plan.merge(x_BTC, *found)
        if scope.index_N is None:
            return out
        return scatter(gather(out, scope.index_N), scope.index_N, out)


HEAD_ROLES: dict[str, type[RoutedLeaf]] = {
    "query": HeadQuery,
    "visible": HeadVisible,
    "fused": HeadFused,
    "merge": HeadMerge,
}
