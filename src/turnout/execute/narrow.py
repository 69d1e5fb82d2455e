"""Narrow a block to what must run: first to the sequences that need it, then to rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from turnout.execute.adapters import AdapterPlan, add_bottleneck
from turnout.execute.asking import asking_of, run_asking
from turnout.execute.experts import ExpertPlan
from turnout.execute.handle import BlockHandle, cache_of
from turnout.execute.heads import HeadPlan
from turnout.execute.reference import pick_sequences
from turnout.execute.rows import is_weighted, round_up, rounded
from turnout.execute.scope import is_reference
from turnout.execute.shorten import lengthen, short_of, shorten
from turnout.route import Route

_Mine = Callable[[Tensor], Tensor]  # cuts what a whole batch has down to the sequences at hand


class Narrowed:
    """The rows of one block that run, by sub-block."""

    def __init__(
        self,
        handle: BlockHandle,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        routes: dict[str, Route],
    ) -> None:
        self.handle, self.x_BTD, self.mask_BT, self.routes = handle, x_BTD, mask_BT, routes
        shape = x_BTD.shape[:2]
        layer = routes.get("layer")
        self.layer_BT = None if layer is None else layer.active_BT
        self.active: dict[str, Tensor] = {}
        for kind in handle.scopes:
            parts = [self.layer_BT] if self.layer_BT is not None else []
            if kind in routes:
                parts.append(routes[kind].active_BT)
            if parts:
                active_BT = parts[0] if len(parts) == 1 else parts[0] & parts[1]
                self.active[kind] = active_BT.expand(shape)
        self.heads, self.experts = routes.get("head"), routes.get("expert")
        self.adapters = routes.get("adapter")
        self.weighted = any(is_weighted(route.weight_BTU) for route in routes.values())

    @property
    def everything(self) -> bool:
        """Does every real token run in every sub-block."""
        if self.adapters is not None or self.handle.copies:  # the host alone has none
            return False
        for units in (self.heads, self.experts):
            if units is not None and not bool((units.weight_BTU != 0).all()):
                return False
        return all(bool(self._skipped(a).sum() == 0) for a in self.active.values())

    @property
    def nothing(self) -> bool:
        """Does no real token run in any sub-block, so that keys and values are all there is."""
        if self.adapters is not None or len(self.active) < len(self.handle.scopes):
            return False
        return not any(bool(self._real(active).any()) for active in self.active.values())

    def _skipped(self, active_BT: Tensor) -> Tensor:
        return ~active_BT if self.mask_BT is None else ~active_BT & self.mask_BT

    def _real(self, active_BT: Tensor) -> Tensor:
        return active_BT if self.mask_BT is None else active_BT & self.mask_BT

    def _heads_BTU(self) -> Tensor:
        """Weights of heads, 0 where the layer does not run either."""
        assert self.heads is not None
        weight_BTU = self.heads.weight_BTU
        if self.layer_BT is None:
            return weight_BTU
        return weight_BTU * self.layer_BT[:, :, None].to(weight_BTU.dtype)

    def execute(
        self, host: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], enter: bool
    ) -> Any:
        """Narrow to the sequences that need the block, then to the rows within them."""
        x_BTD = self.x_BTD
        batch = x_BTD.shape[0]
        if self.layer_BT is None or enter:
            return self._rows(host, x_BTD, args, kwargs, None)
        runs_B = self._real(self.layer_BT.expand(x_BTD.shape[:2])).any(1)
        if is_reference():
            full = self._rows(host, x_BTD, args, kwargs, None)
            return pick_sequences(full, x_BTD, runs_B)
        keep = runs_B.nonzero().squeeze(1)
        if keep.numel() == batch:
            return self._rows(host, x_BTD, args, kwargs, None)
        if keep.numel() == 0:
            return x_BTD
        out = self._rows(
            host,
            x_BTD.index_select(0, keep),
            tuple(take(value, keep, batch) for value in args),
            {name: take(value, keep, batch) for name, value in kwargs.items()},
            keep,
        )
        return x_BTD.index_copy(0, keep, out.to(x_BTD.dtype))

    def _rows(
        self,
        host: Callable[..., Any],
        x_BTD: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: Tensor | None,
    ) -> Any:
        """Run the host's block with its leaves narrowed to the active rows. keep: the sequences
        that x holds; None = all."""
        handle, batch = self.handle, self.x_BTD.shape[0]

        def mine(value: Tensor) -> Tensor:
            return value if keep is None else take(value, keep, batch)

        try:
            handle.stream.state_BTD, handle.stream.keep_B = x_BTD, keep
            if set(self.routes) == {"layer"} and not handle.must_enter and not is_reference():
                assert self.layer_BT is not None
                active_BT = mine(self._real(self.layer_BT.expand(self.x_BTD.shape[:2])))
                way = self._short if handle.hide else self._asking
                out = way(host, x_BTD, args, kwargs, active_BT)
                if out is not None:
                    return out
            self._narrow_leaves(x_BTD, mine)
            self._choose_parts(x_BTD, cache_of(args, kwargs) is not None, mine)
            if handle.hide and handle.scopes["attention"].index_N is not None:
                args, kwargs = hide_keys(args, kwargs, mine(self.active["attention"]), x_BTD)
            return self._adapted(host, x_BTD, args, kwargs, mine)
        finally:
            handle.stream.state_BTD = handle.stream.keep_B = handle.stream.short = None
            for scope in handle.scopes.values():
                scope.clear()

    def _narrow_leaves(self, x_BTD: Tensor, mine: _Mine) -> None:
        """Tell the leaves of each sub-block the rows that run in it, and their weights."""
        layer_index: Tensor | None = None  # one index serves all that a layer decision covers
        for kind, active_BT in self.active.items():
            scope, own = self.handle.scopes[kind], self.routes.get(kind)
            scope.check()
            weighted = own is not None and is_weighted(own.weight_BTU)
            if not weighted and not bool(mine(self._skipped(active_BT)).any()):
                continue
            index = layer_index if own is None else None
            if index is None:
                index = _index_of(mine(self._real(active_BT)), x_BTD)
                if own is None:
                    layer_index = index
            scope.index_N, scope.like_BTD, scope.hide = index, x_BTD, self.handle.hide
            if own is not None and weighted:
                weight_BT = mine(own.weight_BTU.sum(-1).expand(self.x_BTD.shape[:2]))
                scope.weight_N = weight_BT.reshape(-1).index_select(0, index)

    def _choose_parts(self, x_BTD: Tensor, cached: bool, mine: _Mine) -> None:
        """Tell the leaves which heads and which experts run."""
        handle = self.handle
        if self.heads is not None:
            shape_BT = x_BTD.shape[0], x_BTD.shape[1]
            weight_BTU = mine(self._heads_BTU()).expand(shape_BT[0], -1, -1)
            plan = HeadPlan(weight_BTU, shape_BT, cached, handle.whole_heads)
            handle.scopes["attention"].heads = plan
        if self.experts is not None:
            weight_BTE = mine(self.experts.weight_BTU)
            if handle.averages:
                weight_BTE = weight_BTE / weight_BTE.sum(-1, keepdim=True).clamp_min(1e-9)
            handle.scopes["ffn"].experts = ExpertPlan(weight_BTE, x_BTD)

    def _adapted(
        self,
        host: Callable[..., Any],
        x_BTD: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        mine: _Mine,
    ) -> Any:
        """The host's block, with its adapters where it has some."""
        handle = self.handle
        if self.adapters is None:
            return host(x_BTD, *args, **kwargs)
        added = AdapterPlan(mine(self.adapters.weight_BTU), x_BTD)
        for scope in handle.scopes.values():
            scope.adapters = added
        out = host(x_BTD, *args, **kwargs)
        if handle.bottleneck is None:
            return out
        ran_BT = None if self.layer_BT is None else mine(self.layer_BT)
        return add_bottleneck(handle.bottleneck, added, out, ran_BT)

    def _short(
        self,
        host: Callable[..., Any],
        x_BTD: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        active_BT: Tensor,
    ) -> Any:
        """Run the host's block on shorter sequences; None where it must be packed by leaves."""
        short = short_of(active_BT)
        changed = None if short is None else shorten(short, x_BTD, args, kwargs)
        if short is None or changed is None:
            return None
        for scope in self.handle.scopes.values():
            scope.check()
        self.handle.stream.short = short
        x_BSD, args, kwargs = changed
        out = host(x_BSD, *args, **kwargs)
        hidden, *rest = out if isinstance(out, tuple) else (out,)
        hidden = lengthen(short, hidden, x_BTD)
        return (hidden, *rest) if rest else hidden

    def _asking(
        self,
        host: Callable[..., Any],
        x_BTD: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        active_BT: Tensor,
    ) -> Any:
        """Run a decoder's block on the tokens that run, which ask the keys of all; None where it
        must be packed by leaves."""
        if self.handle.noisy:
            return None
        asking = asking_of(self.handle, x_BTD, args, kwargs, active_BT)
        if asking is None:
            return None
        return run_asking(self.handle, host, asking, x_BTD, kwargs)


def _index_of(active_BT: Tensor, x_BTD: Tensor) -> Tensor:
    """Places of the active rows in (B * T). In inference the last one may stand there more than
    once, to make a round number (see ``rounded``): it is computed again and written again. Never as
    many as there are rows, which would mean all of them."""
    index_N = active_BT.reshape(-1).nonzero().squeeze(1)
    if is_reference() or torch.is_grad_enabled() or round_up(len(index_N)) >= active_BT.numel():
        return index_N
    return rounded(index_N, x_BTD)


def take(value: Any, keep: Tensor, batch: int) -> Any:
    """The chosen sequences of an argument: of every tensor whose first dimension is the batch."""
    if isinstance(value, Tensor):
        fits = value.ndim > 0 and value.shape[0] == batch and batch > 1
        return value.index_select(0, keep) if fits else value
    if isinstance(value, tuple | list):
        return type(value)(take(item, keep, batch) for item in value)
    if isinstance(value, dict):
        return {name: take(item, keep, batch) for name, item in value.items()}
    return value


def hide_keys(
    args: tuple[Any, ...], kwargs: dict[str, Any], active_BT: Tensor, x_BTD: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the skipped tokens out of the attention mask: first argument or keyword of a block."""
    by_name = "attention_mask" in kwargs
    mask = kwargs["attention_mask"] if by_name else (args[0] if args else None)
    columns = active_BT[:, None, None, :]
    if mask is None:
        batch, length = x_BTD.shape[:2]
        seen = columns.expand(batch, 1, length, length)
        mask = x_BTD.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(x_BTD.dtype).min)
    elif mask.dtype == torch.bool:
        mask = mask & columns
    else:
        mask = mask.masked_fill(~columns, torch.finfo(mask.dtype).min)
    if by_name:
        return args, {**kwargs, "attention_mask": mask}
    return (mask, *args[1:]), kwargs
