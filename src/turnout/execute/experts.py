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

from turnout.execute.grouped import grouped
from turnout.execute.leaves import CloseLeaf, RoutedLeaf
from turnout.execute.rows import gather, is_weighted, scatter
from turnout.execute.scope import Scope, is_reference
from turnout.hosts.linear import matrix_of
from turnout.units.copies import CopyBank


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a row and an expert that run, sorted by expert. row_P: the rows. counts: pairs of
    each expert. weight_P: their weights."""

    row_P: Tensor
    counts: tuple[int, ...]
    weight_P: Tensor


def pairs_of(weight_RE: Tensor) -> Pairs:
    """The pairs whose weight is not 0."""
    weight_ER = weight_RE.t()
    active_ER = weight_ER.detach() != 0
    expert_P, row_P = active_ER.nonzero(as_tuple=True)
    counts = tuple(active_ER.sum(1).tolist())
    return Pairs(row_P, counts, weight_ER[expert_P, row_P])


@dataclass(eq=False)
class ExpertPlan:
    """Which experts run for which rows. weight_BTE: their weights, T = 1 where sequences choose;
    0 = does not run. like_BTD: the full shape of the block's rows. The pairs that run are found
    once, for all matrices of the network."""

    weight_BTE: Tensor
    like_BTD: Tensor
    pairs: Pairs | None = None
    leading: torch.Size = field(default_factory=torch.Size)

    @property
    def experts(self) -> int:
        """Experts of the network, E."""
        return self.weight_BTE.shape[-1]

    def weight_RE(self, index_N: Tensor | None = None) -> Tensor:
        """Weights of every row (B * T, E), or of packed ones (N, E)."""
        full = self.weight_BTE.expand(*self.like_BTD.shape[:2], self.experts)
        flat = full.reshape(-1, self.experts)
        return flat if index_N is None else flat.index_select(0, index_N)

    def into(
        self, x: Tensor, index_N: Tensor | None, weight_HEFD: Tensor, bias_HEF: Tensor | None
    ) -> Tensor:
        """Neurons of the pairs that run, (P, H * F), from rows, all or packed. H: projections fused
        in one; F: neurons of an expert."""
        self.leading = x.shape[:-1]
        if self.pairs is None:
            self.pairs = pairs_of(self.weight_RE(index_N))
        x_PD = x.reshape(-1, x.shape[-1]).index_select(0, self.pairs.row_P)
        found = []
        for half, weight_EFD in enumerate(weight_HEFD):
            found_PF = grouped(x_PD, weight_EFD, self.pairs.counts)
            if bias_HEF is not None:
                each = torch.tensor(self.pairs.counts, device=x_PD.device)
                bias_PF = bias_HEF[half].to(found_PF.dtype).repeat_interleave(each, 0)
                found_PF = found_PF.add_(bias_PF)
            found.append(found_PF)
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def out(self, found_PF: Tensor, columns_EDF: Tensor, bias: Tensor | None) -> Tensor:
        """What the experts of each row found, added up with their weights: (R, D)."""
        assert self.pairs is not None
        weight_P = self.pairs.weight_P
        if is_weighted(weight_P):
            found_PF = found_PF * weight_P[:, None].to(found_PF.dtype)
        change_PD = grouped(found_PF, columns_EDF, self.pairs.counts)
        total_RD = change_PD.new_zeros(self.leading.numel(), columns_EDF.shape[1])
        if bias is not None:
            total_RD = total_RD + bias.to(total_RD.dtype)
        return total_RD.index_add(0, self.pairs.row_P, change_PD)


class ExpertLeaf(RoutedLeaf):
    """Base of the projections into and out of the neurons. halves: projections fused in one.
    copies: experts that stand in place of the host's network, and the name of this projection among
    them; None = experts are slices of it."""

    _turnout_halves: int
    _turnout_copies: tuple[CopyBank, str] | None


class ExpertIn(ExpertLeaf):
    """Projection into the neurons."""

    def forward(self, x: Tensor) -> Tensor:
        scope: Scope = self._turnout_scope
        plan, copies = scope.experts, self._turnout_copies
        if plan is None or (is_reference() and copies is None):
            return super().forward(x)
        if copies is None:
            weight, bias = matrix_of(self)
            shape = (self._turnout_halves, plan.experts, -1)
            weight_HEFD = weight.view(*shape, weight.shape[1])
            bias_HEF = None if bias is None else bias.view(shape)
        else:
            weight_HEFD, bias_HEF = copies[0].rows(copies[1], x.dtype)
        if is_reference():
            flat = None if bias_HEF is None else bias_HEF.flatten()
            return F.linear(x, weight_HEFD.flatten(0, 2), flat)
        if scope.index_N is not None and x.shape[:-1].numel() != len(scope.index_N):
            x = gather(x, scope.index_N)
        return plan.into(x, scope.index_N, weight_HEFD, bias_HEF)


class ExpertOut(ExpertLeaf):
    """Projection out of the neurons."""

    def forward(self, x: Tensor) -> Tensor:
        scope: Scope = self._turnout_scope
        plan, copies = scope.experts, self._turnout_copies
        if plan is None:
            return super().forward(x)
        weight, bias = matrix_of(self)
        if is_reference():
            each = x.shape[-1] // plan.experts
            x = x * plan.weight_RE().repeat_interleave(each, -1).view(x.shape).to(x.dtype)
            return F.linear(x, weight if copies is None else copies[0].columns(x.dtype), bias)
        if copies is None:
            columns_EDF = weight.view(len(weight), plan.experts, -1).permute(1, 0, 2)
        else:
            columns_EDF = copies[0].out.to(x.dtype)
        out_RD = plan.out(x, columns_EDF, bias)
        if scope.index_N is not None and isinstance(self, CloseLeaf):
            assert scope.like_BTD is not None
            return scatter(out_RD, scope.index_N, scope.like_BTD)
        return out_RD.view(*plan.leading, out_RD.shape[-1])
