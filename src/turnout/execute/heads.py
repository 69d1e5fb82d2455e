"""Attention with some of its heads: projections are sliced, so a skipped head is not computed.

A unit is a group of query heads that share a key and value head (one head where each has its own).
Between the projections the host sees only as many heads as run: those of a sequence stand side by
side in S slots. Where all sequences keep the same units, slices of the matrices are multiplied;
where each keeps its own, either each sequence meets its own slices (long ones), or each unit meets
its own rows. Where tokens choose for themselves, queries and outputs are computed token by token,
keys and values for the sequences in which any token attends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from turnout.execute.rows import gather_round, is_weighted, rounded

# Tokens of a sequence from which copying its slices of a matrix costs less than gathering its rows
# for every unit: measured with a host of 384 columns on a CPU.
LONG = 64


@dataclass(eq=False)
class HeadPlan:
    """Which units run where. weight_BTU: their weights, T = 1 where sequences choose; 0 = does
    not run. shape_BT: sequences and tokens. all_keys: later tokens need keys and values of all
    units (a cache). whole: the host expects projections in full width."""

    weight_BTU: Tensor
    shape_BT: tuple[int, int]
    all_keys: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        self._gathered: tuple[Tensor, list[Tensor]] | None = None

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
    def any_BU(self) -> Tensor:
        """What runs for any token of a sequence."""
        return self.active_BTU.any(1)

    @cached_property
    def shared_S(self) -> Tensor | None:
        """The units that run, where they are the same for all sequences."""
        if bool((self.any_BU == self.any_BU[:1]).all()):
            return self.any_BU[0].nonzero().squeeze(1)
        return None

    @cached_property
    def units_BS(self) -> Tensor:
        """The unit in each slot of each sequence. A sequence with fewer than S has units that do
        not run in its last slots."""
        slots = int(self.any_BU.sum(1).max())
        order_BU = self.any_BU.byte().argsort(dim=1, descending=True, stable=True)
        return order_BU[:, :slots]

    @property
    def slots(self) -> int:
        """S, at least 1: a host cannot reshape to no heads."""
        return max(1, self.units_BS.shape[1])

    @cached_property
    def by_sequence(self) -> bool:
        """Does each sequence meet its own slices: long ones, with as many units each."""
        counts = self.any_BU.sum(1)
        return self.shape_BT[1] >= LONG and bool((counts == counts[0]).all())

    @cached_property
    def token_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """For each unit the tokens that run it, in (B * T), and their slots, in (B * T * S)."""
        return self._pairs(self.active_BTU)

    @cached_property
    def sequence_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """As ``token_pairs``, with all tokens of the sequences in which any runs the unit."""
        return self._pairs(self.any_BU[:, None]) if self.per_token else self.token_pairs

    def _pairs(self, active_BTU: Tensor) -> list[tuple[Tensor, Tensor]]:
        batch, length = self.shape_BT
        unit_BS = self.units_BS
        slot_BU = torch.zeros_like(self.any_BU, dtype=torch.long)
        slot_BU.scatter_(
            1, unit_BS, torch.arange(unit_BS.shape[1], device=unit_BS.device).expand_as(unit_BS)
        )
        found = []
        for unit, active_BT in enumerate(active_BTU.expand(batch, length, -1).unbind(-1)):
            index_N = active_BT.flatten().nonzero().squeeze(1)
            slot_N = slot_BU[:, unit].index_select(0, index_N // length)
            found.append((index_N, index_N * self.slots + slot_N))
        return found

    def columns(self, units: Tensor, width: int) -> Tensor:
        """Places of units in a dimension of ``width``."""
        each = width // self.units
        return (units[..., None] * each + torch.arange(each, device=units.device)).flatten(-2)

    def project(self, x_BTD: Tensor, weight: Tensor, bias: Tensor | None, sparse: bool) -> Tensor:
        """Columns of a projection (out, in) for the units that run. sparse: token by token, where
        tokens choose."""
        shared, tokens = self.shared_S, sparse and self.per_token
        if shared is not None and not len(shared):
            return x_BTD.new_zeros(*x_BTD.shape[:2], len(weight) // self.units)
        if shared is not None and not tokens:
            if len(shared) == self.units:
                return F.linear(x_BTD, weight, bias)
            at = self.columns(shared, len(weight))
            return F.linear(x_BTD, weight[at], None if bias is None else bias[at])
        if not tokens and self.by_sequence:
            own = self._slices(weight).transpose(1, 2)
            if bias is None:
                return torch.bmm(x_BTD, own)
            return torch.baddbmm(self._slices(bias)[:, None], x_BTD, own)
        return self._project_rows(x_BTD, weight, bias, tokens)

    def _slices(self, weight: Tensor) -> Tensor:
        """(U * E, ...) to the slices of each sequence, (B, S * E, ...)."""
        parts = weight.unflatten(0, (self.units, -1))
        own = parts.index_select(0, self.units_BS.flatten())
        return own.reshape(self.units_BS.shape[0], -1, *weight.shape[1:])

    def _project_rows(
        self, x_BTD: Tensor, weight: Tensor, bias: Tensor | None, tokens: bool
    ) -> Tensor:
        pairs = self.token_pairs if tokens else self.sequence_pairs
        biases = [None] * self.units if bias is None else bias.chunk(self.units)
        parts = zip(self._rows(x_BTD, pairs), weight.chunk(self.units), biases, pairs, strict=True)
        found_PE = torch.cat([F.linear(x, w, b)[: len(at)] for x, w, b, (at, _) in parts])
        batch, length = self.shape_BT
        full = found_PE.new_zeros(batch * length * self.slots, found_PE.shape[1])
        return full.index_copy(0, torch.cat([at for _, at in pairs]), found_PE).view(
            batch, length, -1
        )

    def _rows(self, x_BTD: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The rows of each unit, to a round number; keys and values (and queries of sequences)
        share them."""
        shares = pairs is self.sequence_pairs
        if shares and self._gathered is not None and self._gathered[0] is x_BTD:
            return self._gathered[1]
        rows = [gather_round(x_BTD, index_N) for index_N, _ in pairs]
        if shares:
            self._gathered = x_BTD, rows
        return rows

    def merge(self, x_BTC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output projection (out, in) of what the units that run found, (B, T, S * E)."""
        shared = self.shared_S
        if shared is not None and not self.per_token and len(shared):
            if len(shared) == self.units:
                return F.linear(x_BTC, weight, bias)
            return F.linear(x_BTC, weight[:, self.columns(shared, weight.shape[1])], bias)
        if not self.per_token and shared is None and self.by_sequence:
            own = self._slices(weight.t().contiguous())
            return torch.bmm(x_BTC, own) if bias is None else torch.baddbmm(bias, x_BTC, own)
        rows = x_BTC.reshape(x_BTC.shape[0] * x_BTC.shape[1] * self.slots, -1)
        out: Tensor | None = None
        for (index_N, place_N), part in zip(
            self.token_pairs, weight.chunk(self.units, 1), strict=True
        ):
            found_ND = F.linear(rows.index_select(0, rounded(place_N, rows)), part)[: len(index_N)]
            dtype = found_ND.dtype
            if out is None:  # in full precision: many are added up
                exact = torch.promote_types(dtype, torch.float32)
                out = found_ND.new_zeros(len(rows) // self.slots, len(weight), dtype=exact)
                out = out if bias is None else out + bias.to(exact)
            out.index_add_(0, index_N, found_ND.to(out.dtype))
        assert out is not None
        return out.to(dtype).view(*x_BTC.shape[:2], -1)

    def attend(
        self,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BGTD: Tensor,
        value_BGTD: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Weighted attention (B, T, H, D) of the heads in the slots."""
        slots = self.units_BS.shape[1]
        if not slots:
            heads = query_BHTD.shape[1] // (self.units if self.whole else 1)
            return torch.zeros_like(query_BHTD[:, :heads]).transpose(1, 2)
        if self.whole:
            query_BHTD = self._pick(query_BHTD)
        if self.whole or self.all_keys:
            key_BGTD, value_BGTD = self._pick(key_BGTD), self._pick(value_BGTD)
        bias = kwargs.pop("position_bias", None)
        mask, bias = (None if value is None else self._pick(value) for value in (mask, bias))
        out_BTHD = None
        for rows, units in self._by_count():
            if bias is not None:
                kwargs["position_bias"] = _cut(bias, rows, slots, units)
            found, _ = sdpa_attention_forward(
                module,
                _cut(query_BHTD, rows, slots, units),
                _cut(key_BGTD, rows, slots, units),
                _cut(value_BGTD, rows, slots, units),
                None if mask is None else _cut(mask, rows, slots, units),
                **kwargs,
            )
            if rows is None:
                out_BTHD = found
                continue
            if out_BTHD is None:
                batch, heads, length, _ = query_BHTD.shape
                out_BTHD = found.new_zeros(batch, length, heads, found.shape[-1])
            out_BTHD[rows, :, : found.shape[2]] = found
        assert out_BTHD is not None
        if not is_weighted(self.weight_BTU):
            return out_BTHD  # what does not run is not merged
        return self._weigh(out_BTHD, self.take(self.weight_BTU))

    def _by_count(self) -> list[tuple[Tensor | None, int]]:
        """Sequences with as many units, and how many; None = all sequences."""
        counts_B = self.any_BU.sum(1)
        found = [int(count) for count in counts_B.unique()]
        if len(found) == 1:
            return [(None, found[0])]
        return [((counts_B == count).nonzero().squeeze(1), count) for count in found if count]

    def weigh(self, out_BTHD: Tensor) -> Tensor:
        """What all heads of the host found, times the weights of their units. What does not run
        has a gradient of nothing too."""
        return self._weigh(out_BTHD, torch.where(self.active_BTU, self.weight_BTU, 0.0))

    def _weigh(self, out_BTHD: Tensor, weight_BTS: Tensor) -> Tensor:
        each = out_BTHD.shape[2] // weight_BTS.shape[-1]
        weight_BTH = weight_BTS.repeat_interleave(each, -1)
        return out_BTHD * weight_BTH[..., None].to(out_BTHD.dtype)

    def take(self, full: Tensor) -> Tensor:
        """What stands in the slots, (B, T, S * E), of all units' (B|1, T, U * E)."""
        at_BC = self.columns(self.units_BS, full.shape[-1])
        if not at_BC.shape[1]:
            return full.new_zeros(*full.shape[:2], full.shape[-1] // self.units)
        full = full.expand(len(at_BC), -1, -1)
        return full.gather(2, at_BC[:, None].expand(-1, full.shape[1], -1))

    def widen(self, x_BTC: Tensor) -> Tensor:
        """From the slots to all units, zeros where they do not run."""
        width = x_BTC.shape[-1] // self.slots * self.units
        full = x_BTC.new_zeros(*x_BTC.shape[:2], width)
        at_BC = self.columns(self.units_BS, width)
        if not at_BC.shape[1]:
            return full
        return full.scatter(2, at_BC[:, None].expand_as(x_BTC), x_BTC)

    def found(self, x_BTC: Tensor) -> Tensor:
        """What units found, from the slots to all units, zeros for tokens that do not run them."""
        full = self.widen(x_BTC)
        runs_BTC = self.active_BTU.repeat_interleave(full.shape[-1] // self.units, -1)
        return torch.where(runs_BTC, full, 0.0)

    def _pick(self, value: Tensor) -> Tensor:
        """The heads in the slots, of (1|B, 1|H, ...)."""
        shared = self.shared_S
        if value.shape[1] == 1 or (shared is not None and len(shared) == self.units):
            return value
        if shared is not None:
            return value.index_select(1, self.columns(shared, value.shape[1]))
        at_BH = self.columns(self.units_BS, value.shape[1])
        each_B1 = torch.arange(len(at_BH), device=value.device)[:, None]
        return value.expand(len(at_BH), *value.shape[1:])[each_B1, at_BH]


def _cut(value: Tensor, rows: Tensor | None, slots: int, units: int) -> Tensor:
    """The first units' heads for some sequences, of (1|B, 1|H, ...) with H heads in S slots."""
    if rows is None:
        return value
    if value.shape[0] > 1:
        value = value.index_select(0, rows)
    return value if value.shape[1] == 1 else value[:, : value.shape[1] // slots * units]
