"""Leaves of an attention sub-block whose heads are routed: see `execute.heads`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.execute.heads import HeadPlan
from turnout.execute.leaves import RoutedLeaf
from turnout.execute.rows import gather, scatter
from turnout.execute.scope import is_reference
from turnout.hosts.linear import plain_matrix


class HeadLeaf(RoutedLeaf):
    """Base of the projections of a block whose heads are routed. What is no plain matrix (PEFT's
    adapters, quantised weights) is computed in full width, and its result narrowed."""

    @property
    def heads(self) -> HeadPlan | None:
        """What runs; None = all, as the host has it."""
        return None if is_reference() else self._turnout_scope.heads

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plan = self.heads
        if plan is None:
            return super().forward(x, *args, **kwargs)
        matrix = plain_matrix(self)
        if matrix is None:
            return self.narrowed(plan, super().forward(self.widened(plan, x), *args, **kwargs))
        return self.sliced(plan, x, *matrix)

    def sliced(self, plan: HeadPlan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The result for the heads that run, by slices of the matrix (out, in)."""
        raise NotImplementedError

    def widened(self, plan: HeadPlan, x: Tensor) -> Tensor:
        """The input as the host's own layer takes it."""
        return x

    def narrowed(self, plan: HeadPlan, out: Tensor) -> Tensor:
        """What the host's own layer gives, as the leaf gives it."""
        return plan.take(out)


class HeadQuery(HeadLeaf):
    """Query projection."""

    def sliced(self, plan: HeadPlan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plan.project(x, weight, bias, sparse=True)


class HeadVisible(HeadLeaf):
    """Key or value projection."""

    def sliced(self, plan: HeadPlan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if plan.all_keys:
            return F.linear(x, weight, bias)
        return plan.project(x, weight, bias, sparse=False)

    def narrowed(self, plan: HeadPlan, out: Tensor) -> Tensor:
        return out if plan.all_keys else plan.take(out)


class HeadFused(HeadLeaf):
    """Query, key and value in one matrix, in this order."""

    def sliced(self, plan: HeadPlan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        parts = []
        for at, part in enumerate(zip(weight.chunk(3), biases, strict=True)):
            if at and plan.all_keys:
                parts.append(F.linear(x, *part))
            else:
                own = plan.project(x, *part, sparse=at == 0)
                parts.append(plan.widen(own) if plan.whole else own)
        return torch.cat(parts, -1)

    def narrowed(self, plan: HeadPlan, out: Tensor) -> Tensor:
        return out if plan.whole else torch.cat([plan.take(part) for part in out.chunk(3, -1)], -1)


class HeadMerge(HeadLeaf):
    """Output projection. Rows outside of the scope give zeros, as a change of nothing."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out, index_N = super().forward(x, *args, **kwargs), self._turnout_scope.index_N
        return out if index_N is None else scatter(gather(out, index_N), index_N, out)

    def sliced(self, plan: HeadPlan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plan.merge(x, weight, bias)

    def widened(self, plan: HeadPlan, x: Tensor) -> Tensor:
        return plan.found(x)

    def narrowed(self, plan: HeadPlan, out: Tensor) -> Tensor:
        return out


HEAD_ROLES: dict[str, type[RoutedLeaf]] = {
    "query": HeadQuery,
    "visible": HeadVisible,
    "fused": HeadFused,
    "merge": HeadMerge,
}
