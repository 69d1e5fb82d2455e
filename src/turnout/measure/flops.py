"""FLOPs of the blocks of a host: all of them, and what routing left of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from turnout.execute.pool import BulkResult
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.price import price


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


def mean_flops(
    model: PreTrainedModel,
    lengths: np.ndarray,
    result: BulkResult,
    written: Sequence[int] | None = None,
) -> float:
    """FLOPs of an example, on average, from one run of ``run_bulk`` over them. written: tokens of
    each answer that a decoder wrote, one beam of it."""
    if written is None:
        return float((dense_flops(model, lengths).sum() - result.saved) / len(lengths))
    by_stack = {"encoder": lengths, "decoder": np.asarray(written)}
    whole = 0.0
    for view in blocks_of(model, find_family(model)):
        cost, tokens = price(view, "layer"), by_stack[view.stack.name].astype(np.float64)
        whole += float((cost.row * tokens + cost.pair * tokens**2).sum())
    return whole * result.share / len(lengths)
