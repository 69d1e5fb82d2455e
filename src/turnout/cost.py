"""FLOPs of routes and traces. Pure functions of records; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turnout.route import Route, Site, Trace


def route_flops_B(route: Route, valid_BT: Tensor, entered: bool = False) -> Tensor:
    """Work of one route per sequence, in FLOPs, shape (B,), differentiable through the weights.

    A weight counts by its *value* (1 for a unit that runs), so a straight-through weight passes
    its gradient on. Skipped tokens of a sequence in which something runs cost ``idle``, and
    those of every sequence when the site was ``entered`` (see Trace).
    """
    cost = route.site.cost
    weight_BTU = route.weight_BTU
    ran_BTU = torch.where(weight_BTU.detach() != 0, weight_BTU / _nonzero(weight_BTU), weight_BTU)
    valid = valid_BT.to(ran_BTU.dtype)
    rows_B = (ran_BTU.sum(-1) * valid).sum(1)
    length_B = valid.sum(1)
    runs_B = ((rows_B.detach() > 0) | entered).to(rows_B.dtype)
    idle_B = (length_B * route.site.units - rows_B) * runs_B
    return cost.row * rows_B + cost.idle * idle_B + cost.pair * runs_B * length_B**2


def dense_flops_B(site: Site, valid_BT: Tensor) -> Tensor:
    """Work of a site when everything runs, in FLOPs, shape (B,)."""
    length_B = valid_BT.sum(1).to(torch.get_default_dtype())
    return site.cost.row * site.units * length_B + site.cost.pair * length_B**2


def trace_flops(trace: Trace) -> Tensor:
    """Routed work of one pass, summed over sites and sequences (scalar, FLOPs)."""
    parts = [
        route_flops_B(route, trace.valid_BT(route.site.stack), key in trace.entered).sum()
        for key, route in trace.items()
    ]
    return _total(parts)


def trace_share(trace: Trace) -> Tensor:
    """Share of the routed work that was spent, 0..1 (scalar, differentiable)."""
    if not trace:
        raise ValueError("the trace holds no route: run the routed model inside the scope first")
    dense = _total(
        [dense_flops_B(r.site, trace.valid_BT(r.site.stack)).sum() for r in trace.values()]
    )
    return trace_flops(trace) / dense


def _nonzero(weight: Tensor) -> Tensor:
    value = weight.detach()
    return torch.where(value != 0, value, torch.ones_like(value))


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.float() for part in parts]).sum()
