"""FLOPs of the blocks of a host: all of them, and what routing left of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from turnout.cost import dense_flops_B, trace_flops
from turnout.execute.pool import poolable
from turnout.hosts.attach import blocks_of, find_family, price


def depth_of(model: PreTrainedModel) -> int:
    """Number of blocks in all stacks of a host."""
    return len(blocks_of(model, find_family(model)))


def dense_flops(model: PreTrainedModel, lengths: np.ndarray) -> np.ndarray:
    """FLOPs of all blocks for inputs of these lengths in tokens, one number an input.

    Padding is not counted. Embeddings and the head of the task are not in it.
    """
    costs = [price(view, "layer") for view in blocks_of(model, find_family(model))]
    row, pair = sum(cost.row for cost in costs), sum(cost.pair for cost in costs)
    return row * lengths + pair * lengths.astype(np.float64) ** 2


@dataclass
class Saved:
    """FLOPs that skipping saved in the passes that were watched."""

    flops: float = 0.0


@contextmanager
def watch_savings(model: PreTrainedModel) -> Iterator[Saved]:
    """Add up, from the trace of every forward pass inside, what a routed model did not run.

    Nothing is added for rows that ``predict_bulk`` pools: see ``mean_flops``.
    """
    saved = Saved()
    routing: Any = None if poolable(model) else getattr(model, "turnout", None)

    def after(*_: Any) -> None:
        trace = routing.current_flow().trace
        dense = sum(
            float(dense_flops_B(route.site, trace.valid_BT(route.site.stack)).double().sum())
            for route in trace.values()
        )
        saved.flops += dense - float(trace_flops(trace))

    handle = model.register_forward_hook(after) if routing is not None else None
    try:
        yield saved
    finally:
        if handle is not None:
            handle.remove()


def mean_flops(
    model: PreTrainedModel, lengths: np.ndarray, units: np.ndarray, saved: Saved
) -> float:
    """FLOPs of an example, on average, from one run of ``predict_bulk``.

    units: blocks that ran for each example. Pooled rows run whole blocks or nothing and leave no
    trace of a pass; their work is the number of blocks times the work of one (the mean over the
    stack). All else is the host's work less what was ``saved``.
    """
    dense = dense_flops(model, lengths)
    if poolable(model):
        return float((dense * units / depth_of(model)).mean())
    return float((dense.sum() - saved.flops) / len(lengths))
