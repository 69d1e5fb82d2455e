"""Attention with some of its heads: projections are sliced, so a skipped head is not computed.

A unit is a group of query heads that share a key and value head (one head where each has its own).
Its columns of the query, key and value projections, its attention, and its rows of the output
projection are computed for the sequences that keep it; sequences that keep the same units are
computed together. Where tokens choose for themselves, queries and outputs are computed token by
token, keys and values for the sequences in which any token attends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from turnout.execute.leaves import RoutedLeaf
from turnout.execute.rows import gather, scatter
from turnout.execute.scope import is_reference


@dataclass(eq=False)
class HeadPlan:
    """Which units run where. weight_BTU: their weights, T = 1 where sequences choose; 0 = does
    not run. all_keys: later tokens need keys and values of all units (a cache)."""

    weight_BTU: Tensor
    all_keys: bool = False

    @property
    def units(self) -> int:
        """Units of the site, U."""
        return self.weight_BTU.shape[-1]

    @property
    def per_token(self) -> bool:
        """Do tokens choose for themselves."""
        return self.weight_BTU.shape[1] > 1

    @cached_property
    def active_BTU(self) -> Tensor:
        """What runs."""
        return self.weight_BTU.detach() != 0

    @cached_property
    def groups(self) -> list[tuple[Tensor | None, Tensor]]:
        """Sequences that keep the same units, and those units; None = all sequences."""
        sets_GU, which_B = self.active_BTU.any(1).unique(dim=0, return_inverse=True)
        units = [row.nonzero().squeeze(1) for row in sets_GU]
        if len(units) == 1:
            return [(None, units[0])]
        return [
            ((which_B == group).nonzero().squeeze(1), found) for group, found in enumerate(units)
        ]

    def columns(self, units: Tensor, width: int) -> Tensor:
        """Places of units in a dimension of ``width``."""
        each = width // self.units
        return (units[:, None] * each + torch.arange(each, device=units.device)).flatten()

    def project(self, x_BTD: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool) -> Tensor:
        """Columns of a projection (out, in) for the units that run, zeros elsewhere. sparse: token
        by token, where tokens choose."""
        if sparse and self.per_token:
            return self._project_tokens(x_BTD, weight, bias)
        shape, out = (*x_BTD.shape[:2], len(weight)), None
        for rows, units in self.groups:
            if len(units) == self.units and rows is None:
                return F.linear(x_BTD, weight, bias)
            at = self.columns(units, len(weight))
            x = x_BTD if rows is None else x_BTD.index_select(0, rows)
            found = F.linear(x, weight[at], None if bias is None else bias[at])
            wide = found.new_zeros(*found.shape[:2], len(weight)).index_copy(2, at, found)
            out = _put(out, wide, rows, shape)
        return x_BTD.new_zeros(shape) if out is None else out

    def _project_tokens(self, x_BTD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pieces = []
        for unit, part in enumerate(weight.chunk(self.units)):
            own = None if bias is None else bias.chunk(self.units)[unit]
            index = self.active_BTU[:, :, unit].flatten().nonzero().squeeze(1)
            pieces.append(scatter(F.linear(gather(x_BTD, index), part, own), index, x_BTD))
        return torch.cat(pieces, -1)

    def merge(self, x_BTD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output projection (out, in) of what the units that run found."""
        if self.per_token:
            return self._merge_tokens(x_BTD, weight, bias)
        shape, out = (*x_BTD.shape[:2], len(weight)), None
        for rows, units in self.groups:
            if len(units) == self.units and rows is None:
                return F.linear(x_BTD, weight, bias)
            at = self.columns(units, weight.shape[1])
            x = x_BTD if rows is None else x_BTD.index_select(0, rows)
            found = F.linear(x.index_select(2, at), weight[:, at], bias)
            out = _put(out, found, rows, shape)
        return x_BTD.new_zeros(shape) if out is None else out

    def _merge_tokens(self, x_BTD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = x_BTD.new_zeros(*x_BTD.shape[:2], len(weight))
        if bias is not None:
            out = out + bias
        x_parts, w_parts = x_BTD.chunk(self.units, -1), weight.chunk(self.units, 1)
        for unit, (x, part) in enumerate(zip(x_parts, w_parts, strict=True)):
            index = self.active_BTU[:, :, unit].flatten().nonzero().squeeze(1)
            out = out + scatter(F.linear(gather(x, index), part), index, x_BTD)
        return out

    def weigh(self, out_BTHD: Tensor) -> Tensor:
        """What heads found, times the weights of their units."""
        each = out_BTHD.shape[2] // self.units
        weight_BTH = self.weight_BTU.repeat_interleave(each, -1)
        return out_BTHD * weight_BTH[..., None].to(out_BTHD.dtype)

    def attend(
        self,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BGTD: Tensor,
        value_BGTD: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Attention (B, T, H, D) of the units that run, zeros elsewhere."""
        batch, heads, length, width = query_BHTD.shape
        bias = kwargs.pop("position_bias", None)
        out = query_BHTD.new_zeros(batch, length, heads, width)
        for rows, units in self.groups:
            if not len(units):
                continue
            at = self.columns(units, heads)
            more: dict[str, Any] = (
                {} if bias is None else {"position_bias": _pick(bias, rows, at, batch, heads)}
            )
            found, _ = sdpa_attention_forward(
                module,
                _pick(query_BHTD, rows, at, batch, heads),
                _pick(key_BGTD, rows, units, batch, self.units),
                _pick(value_BGTD, rows, units, batch, self.units),
                None if mask is None else _pick(mask, rows, at, batch, heads),
                **kwargs,
                **more,
            )
            wide = found.new_zeros(len(found), length, heads, width).index_copy(2, at, found)
            out = wide if rows is None else out.index_copy(0, rows, wide)
        return out


def _put(out: Tensor | None, found: Tensor, rows: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """What some sequences found (None = all), put with the others; in the format it came in, which
    under autocast is not that of the input."""
    if rows is None:
        return found
    base = found.new_zeros(shape) if out is None else out
    return base.index_copy(0, rows, found)


def _pick(value: Tensor, rows: Tensor | None, at: Tensor, batch: int, heads: int) -> Tensor:
    """Some sequences and heads of (1|B, 1|H, ...)."""
    if rows is not None and value.shape[0] == batch and batch > 1:
        value = value.index_select(0, rows)
    if value.shape[1] == heads and heads > 1 and len(at) < heads:
        value = value.index_select(1, at)
    return value


class HeadLeaf(RoutedLeaf):
    """Base of the projections of a block whose heads are routed."""

    def _matrix(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight (out, in) and bias; None where a plan cannot slice them (reference, adapters)."""
        plain = isinstance(self, nn.Linear | Conv1D)
        if self._turnout_scope.heads is None or is_reference() or not plain:
            return None
        host: Any = self
        return (host.weight.t() if isinstance(self, Conv1D) else host.weight), host.bias


class HeadQuery(HeadLeaf):
    """Query projection."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        found, plan = self._matrix(), self._turnout_scope.heads
        if found is None or plan is None:
            return super().forward(x_BTD)
        return plan.project(x_BTD, *found, sparse=True)


class HeadVisible(HeadLeaf):
    """Key or value projection."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        found, plan = self._matrix(), self._turnout_scope.heads
        if found is None or plan is None or plan.all_keys:
            return super().forward(x_BTD)
        return plan.project(x_BTD, *found, sparse=False)


class HeadFused(HeadLeaf):
    """Query, key and value in one matrix, in this order."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        found, plan = self._matrix(), self._turnout_scope.heads
        if found is None or plan is None:
            return super().forward(x_BTD)
        weight, bias = found
        biases = (None, None, None) if bias is None else bias.chunk(3)
        parts = list(zip(weight.chunk(3), biases, strict=True))
        query = plan.project(x_BTD, *parts[0], sparse=True)
        if plan.all_keys:
            rest = [F.linear(x_BTD, *part) for part in parts[1:]]
        else:
            rest = [plan.project(x_BTD, *part, sparse=False) for part in parts[1:]]
        return torch.cat([query, *rest], -1)


class HeadMerge(HeadLeaf):
    """Output projection. Rows outside of the scope give zeros, as a change of nothing."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        found, scope = self._matrix(), self._turnout_scope
        if found is None or scope.heads is None:
            out = super().forward(x_BTD)
        else:
            out = scope.heads.merge(x_BTD, *found)
        if scope.index_N is None:
            return out
        return scatter(gather(out, scope.index_N), scope.index_N, out)


HEAD_ROLES: dict[str, type[RoutedLeaf]] = {
    "query": HeadQuery,
    "visible": HeadVisible,
    "fused": HeadFused,
    "merge": HeadMerge,
}
