"""Experts that a host has by itself: of those its own gate chose, the ones that a route keeps run.

A router decides before the host's gate does, so what both choose may be nothing at all. A token for
which a router keeps experts, but none that the host chose, runs the host's best one: it is dropped
only by a router that keeps none.

Where nothing is skipped the host's own implementation runs. Otherwise the pairs of a token and an
expert that are left are sorted by expert and computed group by group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.execute.grouped import grouped
from turnout.execute.handle import BlockHandle
from turnout.execute.leaves import RoutedLeaf
from turnout.execute.scope import is_reference


def run_pairs(
    experts: Any, x_ND: Tensor, row_P: Tensor, expert_P: Tensor, weight_P: Tensor
) -> Tensor:
    """Experts of a mixture for pairs of a row and an expert, added up by row: (N, D).

    experts: a module of Transformers' kind: ``gate_up_proj`` (E, 2I, D), ``down_proj`` (E, D, I).
    """
    order_P = expert_P.argsort(stable=True)
    row_P, weight_P = row_P[order_P], weight_P[order_P]
    counts = torch.bincount(expert_P, minlength=experts.num_experts).tolist()
    inner_PI = experts._apply_gate(
        grouped(x_ND.index_select(0, row_P), experts.gate_up_proj, counts)
    )
    change_PD = grouped(inner_PI, experts.down_proj, counts)
    change_PD = change_PD * weight_P[:, None].to(change_PD.dtype)
    return x_ND.new_zeros(x_ND.shape).index_add(0, row_P, change_PD.to(x_ND.dtype))


def kept_of(route_NE: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """Weights that a route gives to the experts that the host chose, (N, K); 1 for the host's best
    where a token keeps experts but none of these."""
    route_NK = route_NE.gather(1, chosen_NK)
    lost_N = (route_NE.detach() != 0).any(1) & ~(route_NK.detach() != 0).any(1)
    best_NK = F.one_hot(weight_NK.detach().argmax(1), chosen_NK.shape[1]).bool()
    return torch.where(lost_N[:, None] & best_NK, 1.0, route_NK)


class OwnExperts(RoutedLeaf):
    """The experts of a mixture, called as experts(rows, chosen, weights)."""

    _turnout_handle: BlockHandle

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
        plan = self._turnout_scope.experts
        if plan is None:
            self._note(chosen_NK, torch.ones_like(weight_NK))
            return super().forward(x_ND, chosen_NK, weight_NK)
        route_NE = plan.weight_RE(None if is_reference() else self._turnout_scope.index_N)
        route_NK = kept_of(route_NE, chosen_NK, weight_NK)
        self._note(chosen_NK, route_NK)
        weight_NK = weight_NK * route_NK.to(weight_NK.dtype)
        if is_reference():
            return super().forward(x_ND, chosen_NK, weight_NK)
        row_P, place_P = (route_NK.detach() != 0).nonzero(as_tuple=True)
        expert_P, weight_P = chosen_NK[row_P, place_P], weight_NK[row_P, place_P]
        return run_pairs(self, x_ND, row_P, expert_P, weight_P)

    def _note(self, chosen_NK: Tensor, route_NK: Tensor) -> None:
        """Put into the trace what really runs: what was kept of what the host chose."""
        handle, scope = self._turnout_handle, self._turnout_scope
        flow, site = handle.stream.flow, handle.sites["expert"]
        if flow is None or site.key not in flow.trace:
            return
        route = flow.trace[site.key]
        batch, length = flow.trace.shape_BT[site.stack]
        kept_NE = torch.zeros(len(chosen_NK), site.units, device=chosen_NK.device)
        kept_NE = kept_NE.scatter(1, chosen_NK, route_NK.to(kept_NE.dtype))
        keep_B = handle.stream.keep_B
        rows = torch.arange(batch, device=chosen_NK.device) if keep_B is None else keep_B
        place_N = (rows[:, None] * length + torch.arange(length, device=rows.device)).flatten()
        if scope.index_N is not None and not is_reference():
            place_N = place_N[scope.index_N]
        full_RE = kept_NE.new_zeros(batch * length, site.units).index_copy(0, place_N, kept_NE)
        flow.trace[site.key] = replace(route, weight_BTU=full_RE.view(batch, length, site.units))
