"""A routed block: ask the routers, run the host's own block on what must run, combine.

The class of each block instance is swapped for ``routed(type(block))``: keys of the state dict,
isinstance checks, output recording and activation checkpointing stay those of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from turnout.execute.reference import pick_sequences
from turnout.execute.rows import modulate
from turnout.execute.scope import Scope, Stream, is_reference
from turnout.execute.span import Span, SpanStop
from turnout.flow import Flow
from turnout.route import Route, Site

if TYPE_CHECKING:
    from turnout.execute.routing import Routing


@dataclass(eq=False)
class BlockHandle:
    """What a routed block knows: its sites, its sub-blocks' scopes, and the routing of the model.

    must_enter: the block returns more than the hidden state, so it runs even with no rows.
    hide: skipped tokens are removed from attention.
    """

    routing: Routing
    stack: str
    layer: int
    depth: int
    sites: dict[str, Site]
    must_enter: bool
    hide: bool
    stream: Stream = field(default_factory=Stream)
    scopes: dict[str, Scope] = field(default_factory=dict)


class RoutedBlock(nn.Module):
    """Mixin that stands before the host's block class."""

    _turnout: BlockHandle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Activation checkpointing keeps the keywords for the second run of `forward`, which may
        # come after another pass has begun. A function, since FSDP copies records it is given.
        flow = self._turnout.routing.current_flow()
        return super().__call__(*args, turnout_flow=lambda: flow, **kwargs)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        flow = kwargs.pop("turnout_flow")()
        return run_block(self._turnout, flow, super().forward, hidden_states, args, kwargs)


class RoutedEmbeddings(nn.Module):
    """Embeddings that a span with its own state passes by."""

    _turnout: BlockHandle

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        span = self._turnout.routing.span
        if span is not None and span.hidden_BTD is not None:
            return span.hidden_BTD
        return super().forward(*args, **kwargs)


def run_block(
    handle: BlockHandle,
    flow: Flow,
    host: Callable[..., Any],
    x_BTD: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """One routed block. Returns what the host's block returns, for the full batch."""
    span = handle.routing.span
    if span is not None:
        return _run_span(handle, span, flow, host, x_BTD, args, kwargs)

    routes = {}
    for kind, site in handle.sites.items():
        flow.enter(site, x_BTD)
        routes[kind] = flow.trace[site.key] = handle.routing.decide(site, x_BTD, flow)
    if not routes:
        return host(x_BTD, *args, **kwargs)
    mask_BT = flow.mask_BT(next(iter(handle.sites.values())))
    run = _Run(handle, x_BTD, mask_BT, routes)
    if run.everything and not run.weighted:
        return host(x_BTD, *args, **kwargs)
    enter = handle.must_enter or any(isinstance(v, Cache) for v in (*args, *kwargs.values()))
    for kind, site in handle.sites.items():
        if enter or kind == "attention":
            flow.trace.entered.add(site.key)
    out = run.execute(host, args, kwargs, enter)
    layer = routes.get("layer")
    if layer is None or not _weighted(layer):
        return out
    hidden, *rest = out if isinstance(out, tuple) else (out,)
    weight = torch.where(layer.weight_BTU != 0, layer.weight_BTU, 1.0)
    hidden = modulate(hidden, x_BTD, weight)
    return (hidden, *rest) if rest else hidden


def _run_span(
    handle: BlockHandle,
    span: Span,
    flow: Flow,
    host: Callable[..., Any],
    x_BTD: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A block of a partial pass: no routing; the end of the span leaves by an exception."""
    state = x_BTD if span.hidden_BTD is None else span.hidden_BTD
    if handle.layer < span.start:
        return state
    if handle.layer == span.start:
        x_BTD = state
    if span.stop is not None and handle.layer >= span.stop:
        raise SpanStop(x_BTD)
    out = host(x_BTD, *args, **kwargs)
    if span.stop is not None and handle.layer + 1 == span.stop:
        raise SpanStop(out)
    return out


def _weighted(route: Route) -> bool:
    """Must the weights be multiplied: they carry a gradient, or are not all 0 or 1."""
    weight = route.weight_BTU
    if weight.requires_grad and torch.is_grad_enabled():
        return True
    return not bool(((weight == 0) | (weight == 1)).all())


class _Run:
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
        self.weighted = any(_weighted(route) for route in routes.values())

    @property
    def everything(self) -> bool:
        """Does every real token run in every sub-block."""
        return all(bool(self._skipped(a).sum() == 0) for a in self.active.values())

    def _skipped(self, active_BT: Tensor) -> Tensor:
        return ~active_BT if self.mask_BT is None else ~active_BT & self.mask_BT

    def execute(
        self, host: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], enter: bool
    ) -> Any:
        """Narrow to the sequences that need the block, then to the rows within them."""
        x_BTD = self.x_BTD
        batch = x_BTD.shape[0]
        some_BT = self.layer_BT if self.layer_BT is not None else None
        if some_BT is None or enter:
            return self._rows(host, x_BTD, args, kwargs, None)
        real_BT = some_BT.expand(x_BTD.shape[:2])
        real_BT = real_BT if self.mask_BT is None else real_BT & self.mask_BT
        runs_B = real_BT.any(1)
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
        """Run the host's block with its leaves narrowed to the active rows."""
        handle = self.handle
        layer_index: Tensor | None = None  # one index serves all that a layer decision covers
        try:
            handle.stream.state_BTD = x_BTD
            for kind, active_BT in self.active.items():
                active = active_BT if keep is None else active_BT.index_select(0, keep)
                skipped = self._skipped(active_BT)
                skipped = skipped if keep is None else skipped.index_select(0, keep)
                scope = handle.scopes[kind]
                weighted = kind in self.routes and _weighted(self.routes[kind])
                if not weighted and not bool(skipped.any()):
                    continue
                index = layer_index if kind not in self.routes else None
                if index is None:
                    mask = (
                        self.mask_BT
                        if keep is None or self.mask_BT is None
                        else (self.mask_BT.index_select(0, keep))
                    )
                    real = active if mask is None else active & mask
                    index = real.reshape(-1).nonzero().squeeze(1)
                    if kind not in self.routes:
                        layer_index = index
                scope.index_N, scope.like_BTD, scope.hide = index, x_BTD, handle.hide
                if weighted:
                    weight = self.routes[kind].weight_BTU.sum(-1).expand(self.x_BTD.shape[:2])
                    weight = weight if keep is None else weight.index_select(0, keep)
                    scope.weight_N = weight.reshape(-1).index_select(0, index)
                if kind == "attention" and handle.hide:
                    args, kwargs = hide_keys(args, kwargs, active, x_BTD)
            return host(x_BTD, *args, **kwargs)
        finally:
            handle.stream.state_BTD = None
            for scope in handle.scopes.values():
                scope.clear()


def take(value: Any, keep: Tensor, batch: int) -> Any:
    """The chosen sequences of an argument: every tensor in it whose first dimension is the batch."""
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
    """Take the skipped tokens out of the attention mask (encoder blocks: first argument or keyword)."""
    by_name = "attention_mask" in kwargs
    mask = kwargs["attention_mask"] if by_name else (args[0] if args else None)
    columns = active_BT[:, None, None, :]
    if mask is None:
        length = x_BTD.shape[1]
        mask = columns.expand(-1, 1, length, length)
        low = torch.finfo(x_BTD.dtype).min
        mask = torch.zeros(mask.shape, dtype=x_BTD.dtype, device=x_BTD.device).masked_fill(
            ~mask, low
        )
    elif mask.dtype == torch.bool:
        mask = mask & columns
    else:
        mask = mask.masked_fill(~columns, torch.finfo(mask.dtype).min)
    if by_name:
        return args, {**kwargs, "attention_mask": mask}
    return (mask, *args[1:]), kwargs
