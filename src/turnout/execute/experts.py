"""A feed-forward network whose neurons are split into experts: rows go only to those they need.

The neurons of an expert stand next to each other in the host's own matrices, so an expert is a
slice. The projection into the neurons gives, instead of (rows, neurons), the pairs of a row and an
expert that run, sorted by expert; the host's activation sees those; the projection out of the
neurons adds up what the experts of a row found.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.execute.leaves import CloseLeaf, RoutedLeaf
from turnout.execute.rows import gather, scatter
from turnout.execute.scope import Scope, is_reference
from turnout.hosts.linear import matrix_of


@dataclass(eq=False)
class ExpertPlan:
    """Which experts run for which rows. weight_BTE: their weights, T = 1 where sequences choose;
    0 = does not run. like_BTD: the full shape of the block's rows. rows_R of each expert are found
    once, for all matrices of the network."""

    weight_BTE: Tensor
    like_BTD: Tensor
    weight_RE: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)
    leading: torch.Size = field(default_factory=torch.Size)

    @property
    def experts(self) -> int:
        """Experts of the network, E."""
        return self.weight_BTE.shape[-1]

    def full_BTE(self) -> Tensor:
        """Weights of every row."""
        return self.weight_BTE.expand(*self.like_BTD.shape[:2], self.experts)

    def meet(self, x: Tensor, index_N: Tensor | None) -> Tensor:
        """Rows (R, D) of an input, all or packed ones; finds out which expert takes which."""
        self.leading = x.shape[:-1]
        if not self.rows:
            weight_RE = self.full_BTE().reshape(-1, self.experts)
            if index_N is not None:
                weight_RE = weight_RE.index_select(0, index_N)
            active_ER = (weight_RE.detach() != 0).t()
            self.weight_RE = weight_RE
            self.rows = [row.nonzero().squeeze(1) for row in active_ER]
        return x.reshape(-1, x.shape[-1])

    def into(self, x_RD: Tensor, weight: Tensor, bias: Tensor | None, halves: int) -> Tensor:
        """Neurons of the pairs that run, sorted by expert: (P, halves * F / E)."""
        weights = self._slices(weight, halves)
        biases = [None] * self.experts if bias is None else self._slices(bias, halves)
        return torch.cat(
            [
                F.linear(gather(x_RD[None], index), part, own)
                for index, part, own in zip(self.rows, weights, biases, strict=True)
            ]
        )

    def out(self, found_PF: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the experts of each row found, added up with their weights: (R, D)."""
        assert self.weight_RE is not None
        total_RD = found_PF.new_zeros(len(self.weight_RE), len(weight))
        if bias is not None:
            total_RD = total_RD + bias
        parts = found_PF.split([len(index) for index in self.rows])
        columns = weight.chunk(self.experts, 1)
        for expert, (part, index, own) in enumerate(zip(parts, self.rows, columns, strict=True)):
            weight_N = self.weight_RE[:, expert].index_select(0, index)
            change_ND = F.linear(part, own) * weight_N[:, None].to(part.dtype)
            total_RD = total_RD.index_add(0, index, change_ND)
        return total_RD

    def _slices(self, value: Tensor, halves: int) -> list[Tensor]:
        """The rows of each expert in a matrix or bias; of both halves where two are fused."""
        parts = [half.chunk(self.experts) for half in value.chunk(halves)]
        if halves == 1:
            return list(parts[0])
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


class ExpertLeaf(RoutedLeaf):
    """Base of the projections into and out of the neurons. halves: projections fused in one."""

    _turnout_halves: int


class ExpertIn(ExpertLeaf):
    """Projection into the neurons."""

    def forward(self, x: Tensor) -> Tensor:
        scope: Scope = self._turnout_scope
        plan = scope.experts
        if plan is None or is_reference():
            return super().forward(x)
        if scope.index_N is not None and x.ndim > 2:
            x = gather(x, scope.index_N)
        x_RD = plan.meet(x, scope.index_N)
        return plan.into(x_RD, *matrix_of(self), self._turnout_halves)


class ExpertOut(ExpertLeaf):
    """Projection out of the neurons."""

    def forward(self, x: Tensor) -> Tensor:
        scope: Scope = self._turnout_scope
        plan = scope.experts
        if plan is None:
            return super().forward(x)
        if is_reference():
            each = x.shape[-1] // plan.experts
            weight = plan.full_BTE().repeat_interleave(each, -1)
            return super().forward(x * weight.to(x.dtype))
        out_RD = plan.out(x, *matrix_of(self))
        if scope.index_N is not None and isinstance(self, CloseLeaf):
            assert scope.like_BTD is not None
            return scatter(out_RD, scope.index_N, scope.like_BTD)
        return out_RD.view(*plan.leading, out_RD.shape[-1])
