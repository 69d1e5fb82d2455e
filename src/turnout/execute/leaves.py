"""Leaves of a routed block: the host's own modules, made to compute only the active rows.

Each role of `hosts.family` is one mixin. A leaf outside a narrowed scope is the host's leaf,
untouched. ``last`` marks the leaf that ends a sub-block, which applies the route's weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from turnout.execute.reference import pick_rows
from turnout.execute.rows import gather, modulate, overlay, scatter
from turnout.execute.scope import Scope, is_reference
from turnout.hosts.linear import plain_matrix


class RoutedLeaf(nn.Module):
    """Base of the roles: holds the scope that the block sets."""

    _turnout_scope: Scope
    _turnout_last: bool


def _weigh(leaf: RoutedLeaf, rows_ND: Tensor) -> Tensor:
    weight_N = leaf._turnout_scope.weight_N
    if weight_N is None or not leaf._turnout_last:
        return rows_ND
    return rows_ND * weight_N[:, None].to(rows_ND.dtype)


class DeltaLeaf(RoutedLeaf):
    """A change that is added to the stream; skipped rows give zeros."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = self._turnout_scope
        if scope.index_N is None:
            return super().forward(x, *args, **kwargs)
        if is_reference():
            full = super().forward(x, *args, **kwargs)
            weight = scope.weight_N if self._turnout_last else None
            return pick_rows(full, torch.zeros_like(full), scope.index_N, weight)
        if not len(scope.index_N):
            none = super().forward(x.flatten(0, 1)[:0], *args, **kwargs)
            return none.new_zeros(*x.shape[:2], none.shape[-1])
        rows = super().forward(gather(x, scope.index_N), *args, **kwargs)
        return scatter(_weigh(self, rows), scope.index_N, x)


class SequenceLeaf(DeltaLeaf):
    """As ``delta``, around a module that takes (B, T, D) only: rows go in as one sequence."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = self._turnout_scope
        if scope.index_N is None or is_reference():
            return super().forward(x, *args, **kwargs)
        host = super(DeltaLeaf, self).forward
        rows = host(gather(x, scope.index_N)[None], *args, **kwargs)[0]
        return scatter(_weigh(self, rows), scope.index_N, x)


class OpenLeaf(RoutedLeaf):
    """First of several leaves: what follows sees the active rows packed as (N, D)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = self._turnout_scope
        if scope.index_N is None or is_reference():
            return super().forward(x, *args, **kwargs)
        return super().forward(gather(x, scope.index_N), *args, **kwargs)


class CloseLeaf(RoutedLeaf):
    """Last of several leaves: packed rows in, the full shape out, zeros where skipped."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = self._turnout_scope
        out = super().forward(x, *args, **kwargs)
        if scope.index_N is None:
            return out
        if is_reference():
            weight = scope.weight_N if self._turnout_last else None
            return pick_rows(out, torch.zeros_like(out), scope.index_N, weight)
        assert scope.like_BTD is not None
        return scatter(_weigh(self, out), scope.index_N, scope.like_BTD)


class ResidualLeaf(RoutedLeaf):
    """Called as leaf(x, residual): adds and normalises; skipped rows keep the residual."""

    def forward(self, x: Tensor, residual_BTD: Tensor) -> Tensor:
        scope = self._turnout_scope
        if scope.index_N is None:
            return super().forward(x, residual_BTD)
        if is_reference():
            full = super().forward(x, residual_BTD)
            return pick_rows(full, residual_BTD, scope.index_N, scope.weight_N)
        packed = x if x.ndim == 2 else gather(x, scope.index_N)
        before = gather(residual_BTD, scope.index_N)
        after = super().forward(packed, before)
        if scope.weight_N is not None:
            after = modulate(after, before, scope.weight_N[:, None])
        return overlay(after, scope.index_N, residual_BTD)


class NormLeaf(RoutedLeaf):
    """A norm after the addition: skipped rows keep the state they had before the sub-block."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        scope = self._turnout_scope
        state = scope.stream.state_BTD
        if scope.index_N is None:
            out = super().forward(x_BTD)
        elif is_reference():
            assert state is not None
            out = pick_rows(super().forward(x_BTD), state, scope.index_N, scope.weight_N)
        else:
            assert state is not None
            after = super().forward(gather(x_BTD, scope.index_N))
            if scope.weight_N is not None:
                before = gather(state, scope.index_N)
                after = modulate(after, before, scope.weight_N[:, None])
            out = overlay(after, scope.index_N, state)
        scope.stream.state_BTD = out
        return out


class VisibleLeaf(RoutedLeaf):
    """Keys and values: every row is computed, unless skipped rows are hidden from the others."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = self._turnout_scope
        if scope.known and isinstance(self, nn.Linear):  # what is given back is not looked at
            return x.new_zeros(*x.shape[:-1], self.out_features)
        if scope.index_N is None or not scope.hide or is_reference():
            return super().forward(x, *args, **kwargs)
        rows = super().forward(gather(x, scope.index_N), *args, **kwargs)
        return scatter(rows, scope.index_N, x)


class FusedLeaf(RoutedLeaf):
    """Query, key and value in one matrix, query first: its query part only for active rows."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        scope = self._turnout_scope
        if scope.index_N is None or is_reference():
            return super().forward(x_BTD)
        rows = gather(x_BTD, scope.index_N)
        if scope.hide:
            return scatter(super().forward(rows), scope.index_N, x_BTD)
        matrix = plain_matrix(self)
        if matrix is None:  # an adapter has more than one
            return super().forward(x_BTD)
        weight, bias = matrix
        width = weight.shape[0] // 3
        bias_q, bias_kv = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(rows, weight[:width], bias_q)
        rest = F.linear(x_BTD, weight[width:], bias_kv)
        return torch.cat([scatter(query, scope.index_N, x_BTD), rest], dim=-1)


ROLES: dict[str, type[RoutedLeaf]] = {
    "delta": DeltaLeaf,
    "sequence": SequenceLeaf,
    "query": DeltaLeaf,
    "open": OpenLeaf,
    "close": CloseLeaf,
    "residual": ResidualLeaf,
    "norm": NormLeaf,
    "visible": VisibleLeaf,
    "fused": FusedLeaf,
}
