"""What the sites of a block cost, from the shapes of its matrices."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from turnout.hosts.view import BlockView
from turnout.route import Site, SiteKind, UnitCost


def site_of(
    view: BlockView,
    kind: SiteKind,
    hidden: bool = False,
    units: int | None = None,
    cost: UnitCost | None = None,
    together: int | None = None,
) -> Site:
    """The site of a kind at a block, with its cost. hidden: skipped tokens make no keys. units: how
    many there are where that is not the host's to say. cost: of one; None = the host's part.
    together: how many a token runs when everything does; None = all."""
    key = f"{view.place}.{kind}"
    if units is None:
        units = view.groups if kind == "head" else 1
    most = units if together is None else together
    if cost is None:
        cost = price(view, kind, units)
    if hidden:
        cost = replace(cost, idle=0.0)
    return Site(key, kind, view.stack.name, view.layer, view.depth, units, cost, most)


def price(view: BlockView, kind: SiteKind, units: int = 1) -> UnitCost:
    """FLOPs of a sub-block, of one of its heads or of the whole block, from its matrices' shapes.

    What cross-attention does for the encoder's tokens is not in it.
    """
    if kind == "layer":
        parts = [_price_part(view, part) for part in ("attention", "cross", "ffn")]
        idle = sum(part.idle for part in parts) if view.stack.hideable is False else parts[0].idle
        return UnitCost(
            sum(p.row for p in parts), idle, sum(p.pair for p in parts), sum(p.bytes for p in parts)
        )
    if kind == "head":
        return _price_part(view, "attention").part(units)
    if kind == "expert":
        return _price_part(view, "ffn").part(units)
    return _price_part(view, kind)


def _price_part(view: BlockView, part: str) -> UnitCost:
    row = idle = pair = 0.0
    size = 0
    for leaf, module in view.leaves(part):
        matrix = _matrix_flops(module) + view.top * _expert_flops(module)
        size += sum(p.numel() * p.element_size() for p in module.parameters())
        if leaf.role == "visible":
            idle += matrix
        elif leaf.role == "fused":
            idle += matrix * 2 / 3
            row += matrix / 3
            pair += 4 * _width(module) / 3
        elif leaf.role == "query":
            row += matrix
            pair += 4 * _width(module) if part != "cross" else 0.0
        else:
            row += matrix
    return UnitCost(row + idle, idle, pair, size)


def _matrix_flops(module: nn.Module) -> float:
    """Two FLOPs for each weight of each matrix: what one row costs."""
    return float(sum(2 * p.numel() for p in module.parameters() if p.ndim == 2))


def _expert_flops(module: nn.Module) -> float:
    """What one expert of a host's own costs for one row, two FLOPs a weight."""
    return float(sum(2 * p[0].numel() for p in module.parameters() if p.ndim == 3))


def _width(module: nn.Module) -> int:
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        return bias.shape[0]
    return int(module.weight.shape[0])  # type: ignore[union-attr,index]
