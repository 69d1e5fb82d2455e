"""A routed block: ask the routers, run the host's own block on what must run, combine.

The class of each block instance is swapped for ``routed(type(block))``: keys of the state dict,
isinstance checks, output recording and activation checkpointing stay those of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from turnout.execute.asking import write
from turnout.execute.handle import BlockHandle, cache_of
from turnout.execute.narrow import Narrowed
from turnout.execute.rows import is_weighted, modulate
from turnout.execute.scope import is_reference
from turnout.execute.span import Span, SpanStop
from turnout.execute.writing import fill
from turnout.flow import Flow
from turnout.route import Route


class RoutedBlock(nn.Module):
    """Mixin that stands before the host's block class."""

    _turnout: BlockHandle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Activation checkpointing keeps the keywords for the second run of `forward`, which may
        # come after another pass has begun. A function, since FSDP copies records it is given.
        flow = self._turnout.routing.open_flow()
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
        return _run_span(handle, span, host, x_BTD, args, kwargs)

    handle.stream.flow = flow
    try:
        return _run_routed(handle, flow, host, x_BTD, args, kwargs)
    finally:
        handle.stream.flow = None


def _run_routed(
    handle: BlockHandle,
    flow: Flow,
    host: Callable[..., Any],
    x_BTD: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Ask, and run what must run."""
    if handle.watch or handle.noisy:
        flow.enter(handle.stack, x_BTD)
    routes = {}
    for kind, site in handle.sites.items():
        flow.enter(site.stack, x_BTD)
        routes[kind] = flow.trace[site.key] = handle.routing.decide(site, x_BTD, flow)
    if not routes:
        return host(x_BTD, *args, **kwargs)
    cache = cache_of(args, kwargs)
    if cache is not None and set(routes) == {"layer"} and x_BTD.shape[:2] == (1, 1):
        out = _run_token(handle, flow, routes["layer"], host, x_BTD, args, kwargs)
        if out is not None:
            return out
    mask_BT = flow.mask_BT(next(iter(handle.sites.values())))
    run = Narrowed(handle, x_BTD, mask_BT, routes)
    if run.everything and not run.weighted:
        return host(x_BTD, *args, **kwargs)
    stops = run.nothing and not handle.must_enter and not is_reference()
    if cache is not None and stops and fill(cache, lambda: run.execute(host, args, kwargs, True)):
        flow.trace.written.update(site.key for site in handle.sites.values())
        return x_BTD
    cached = cache is not None
    enter = handle.must_enter or cached
    for kind, site in handle.sites.items():
        if cached if kind == "head" else enter or kind == "attention":
            flow.trace.entered.add(site.key)
    out = run.execute(host, args, kwargs, enter)
    layer = routes.get("layer")
    if layer is None or not is_weighted(layer.weight_BTU):
        return out
    hidden, *rest = out if isinstance(out, tuple) else (out,)
    weight = torch.where(layer.weight_BTU != 0, layer.weight_BTU, 1.0)
    hidden = modulate(hidden, x_BTD, weight)
    return (hidden, *rest) if rest else hidden


def _run_token(
    handle: BlockHandle,
    flow: Flow,
    route: Route,
    host: Callable[..., Any],
    x_BTD: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """One token of one text, as decoding has them: nothing needs to be packed, and small models
    would spend their time on packing it. None where it is no plain yes or no."""
    weight = float(route.weight_BTU.detach())
    if weight == 1.0 and not is_weighted(route.weight_BTU):
        return host(x_BTD, *args, **kwargs)
    if weight != 0.0 or handle.must_enter or is_reference():
        return None
    if write(handle, host, x_BTD, args, kwargs) is None:
        return None
    flow.trace.written.add(route.site.key)
    return x_BTD


def _run_span(
    handle: BlockHandle,
    span: Span,
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
        raise SpanStop(out[0] if isinstance(out, tuple) else out)
    return out
