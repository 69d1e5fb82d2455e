"""FLOPs and bytes of routes and traces. Pure functions of records; nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from turnout.route import ADDED, Route, Site, Trace, UnitCost


def own_costs(sites: Iterable[Site]) -> dict[str, UnitCost]:
    """Work that each site decides by itself: what routed sub-blocks cost is taken out of their
    layer, so that the sum over the sites counts nothing twice."""
    sites = list(sites)
    found = {site.key: site.cost for site in sites}
    for site in sites:
        above = _layer_of(site)
        if site.kind != "layer" and site.kind not in ADDED and above in found:
            found[above] = found[above] - site.whole
    return found


def nested(trace: Trace, own: bool = True) -> list[Route]:
    """The routes as they were carried out: a sub-block runs only where its layer runs too, and
    each site has its own cost (see ``own_costs``), or with ``own=False`` the cost of all that it
    stands for, its routed sub-blocks included."""
    sites = [route.site for route in trace.values()]
    costs = own_costs(sites) if own else {site.key: site.cost for site in sites}
    found = []
    for key, route in trace.items():
        weight_BTU = _ran(route.weight_BTU)
        above = trace.get(_layer_of(route.site))
        if above is not None and above is not route:
            weight_BTU = weight_BTU * _ran(above.weight_BTU)
        found.append(Route(replace(route.site, cost=costs[key]), weight_BTU))
    return found


def route_flops_B(
    route: Route, valid_BT: Tensor, entered: bool | Tensor = False, written: bool = False
) -> Tensor:
    """Work of one route per sequence, in FLOPs, shape (B,), differentiable through the weights.

    A weight counts by its *value* (1 for a unit that runs), so a straight-through weight passes
    its gradient on. Tokens that a unit skips in a sequence where it runs cost ``idle``, and
    those of the sequences where the site was ``entered`` (see Trace; one bool, or one a sequence).
    written: nothing ran, and all tokens cost ``idle``.
    """
    cost = route.site.cost
    valid = valid_BT.to(route.weight_BTU.dtype)
    rows_BU = (_ran(route.weight_BTU) * valid[:, :, None]).sum(1)
    length_B1 = valid.sum(1, keepdim=True)
    runs_BU = rows_BU.detach() > 0
    entered_BU = runs_BU | _column(entered)
    # a head that was entered only for a cache made its keys and values, no more
    attends_BU = runs_BU if route.site.kind == "head" else entered_BU
    idle_BU = (length_B1 - rows_BU) * (entered_BU | written)
    work_BU = cost.row * rows_BU + cost.idle * idle_BU + cost.pair * attends_BU * length_B1**2
    return work_BU.sum(-1)


def dense_flops_B(site: Site, valid_BT: Tensor) -> Tensor:
    """Work of a site when everything runs, in FLOPs, shape (B,)."""
    length_B = valid_BT.sum(1).to(torch.get_default_dtype())
    return site.whole.row * length_B + site.whole.pair * length_B**2


def trace_flops(trace: Trace) -> Tensor:
    """Routed work of one pass, summed over sites and sequences (scalar, FLOPs)."""
    return _total(
        [
            route_flops_B(
                route,
                trace.valid_BT(route.site.stack),
                entered_in(trace, route),
                route.site.key in trace.written,
            ).sum()
            for route in nested(trace)
        ]
    )


def trace_dense_flops(trace: Trace) -> Tensor:
    """What the routed work of one pass would be if everything ran (scalar, FLOPs)."""
    costs = own_costs(route.site for route in trace.values())
    sites = [replace(route.site, cost=costs[key]) for key, route in trace.items()]
    return _total([dense_flops_B(site, trace.valid_BT(site.stack)).sum() for site in sites])


def added_flops(trace: Trace) -> float:
    """What units that a host lacks would cost if all of them ran, in FLOPs."""
    sites = [route.site for route in trace.values() if route.site.kind in ADDED]
    return sum(float(dense_flops_B(s, trace.valid_BT(s.stack)).sum()) for s in sites)


def trace_bytes(trace: Trace) -> int:
    """Bytes of the weights of the units that ran for any row of a pass: what one decode step, or
    any pass of few rows, must read from memory. Units that ran for no row count nothing."""
    return sum(
        route.site.cost.bytes * int((route.weight_BTU.detach() != 0).flatten(0, 1).any(0).sum())
        for route in nested(trace)
    )


def trace_share(trace: Trace) -> Tensor:
    """Share of the routed work that was spent, 0..1 (scalar, differentiable)."""
    if not trace:
        raise ValueError("the trace holds no route: run the routed model inside the scope first")
    return trace_flops(trace) / trace_dense_flops(trace)


def entered_in(trace: Trace, route: Route) -> bool | Tensor:
    """In which sequences a site was entered: only in those that its layer, if routed, let in."""
    site = route.site
    above = trace.get(_layer_of(site))
    if site.key not in trace.entered or site.kind == "layer" or above is None:
        return site.key in trace.entered
    if above.site.key in trace.entered:
        return True
    return (above.active_BT & trace.valid_BT(site.stack)).any(1)


def _column(entered: bool | Tensor) -> bool | Tensor:
    return entered[:, None] if isinstance(entered, Tensor) else entered


def _layer_of(site: Site) -> str:
    """The key of the layer that a site stands in; the routing layer stands after the last one."""
    return "" if site.kind == "output" else f"{site.place}.layer"


def _ran(weight_BTU: Tensor) -> Tensor:
    """1 where a unit ran and 0 elsewhere, with the gradient of the weights."""
    value = weight_BTU.detach()
    return torch.where(value != 0, weight_BTU / torch.where(value != 0, value, 1.0), weight_BTU)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.float() for part in parts]).sum()
