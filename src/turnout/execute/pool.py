"""Bulk prediction, and whether the rows of a model can be pooled by depth.

Pooling needs a host with one stack and one router that decides per sequence at site ``layer``;
anything else runs batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from turnout.execute.batches import Batches, Collate, Meter, Row, lengths_of
from turnout.execute.mode import evaluating
from turnout.execute.routing import Routing
from turnout.execute.wavefront import Wavefront
from turnout.hosts.tasks_model import TasksModel


@dataclass
class BulkResult:
    """Predictions in the order given.

    logits: one array an example, (C,) or (T, C). units: blocks that ran for each example, a part
    of a block where only some tokens or sub-blocks ran; 0 for an unrouted model. use: by site key,
    mean share of an example that ran there. share: part of the routed work that was spent, in
    FLOPs, 1 for an unrouted model. saved: FLOPs of all examples that routing did not spend.
    """

    logits: list[np.ndarray]
    units: np.ndarray
    use: dict[str, float]
    share: float
    saved: float


def poolable(model: PreTrainedModel) -> bool:
    """Can the rows of this model be pooled by depth: packs hold words and masks alone."""
    routing: Any = getattr(model, "turnout", None)
    if not isinstance(routing, Routing) or len(routing.stacks) != 1:
        return False
    if not routing.all_routers() or routing.is_noisy:  # pools move through blocks without noise
        return False
    if isinstance(model, TasksModel) and (
        len(model.heads) > 1 or model.prompt is not None or model.case is not None
    ):
        return False
    stack = next(iter(routing.stacks.values()))
    routers = routing.all_routers()
    config = routers[0].config
    return (
        (stack.hideable and not stack.tuple_output and bool(stack.mask))
        and (len(routers) == 1 and config.site == "layer" and config.granularity == "sequence")
        and stack.mask_method is None
    )


@torch.inference_mode()
def predict_bulk(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    batch_tokens: int = 4096,
    window: int = 64,
    pooled: bool | None = None,
    answers: bool = True,
) -> BulkResult:
    """Logits for many encoded rows (``input_ids``, ``attention_mask``, ...).

    batch_tokens: tokens, padding included, in one group. window: groups whose states are held at
    once in pooled work. pooled: None = where it can be done. answers: False keeps no logits. An
    unrouted model runs batch by batch in the same groups. The model is in inference meanwhile, and
    afterwards as it was.
    """
    do_pool = poolable(model) if pooled is None else pooled and poolable(model)
    meter = Meter(len(rows))
    logits: list[np.ndarray | None] = [None] * len(rows)
    lengths = lengths_of(rows)
    work = Wavefront if do_pool else Batches
    kept = logits if answers else None
    with evaluating(model):
        for places in _windows(lengths, window * batch_tokens):
            work(model, rows, lengths, places, collate, batch_tokens, meter, kept).run()
    return bulk_result(model, logits if answers else [], meter)


def bulk_result(model: PreTrainedModel, answers: Any, meter: Meter) -> BulkResult:
    """Answers to all examples, with the work that was counted."""
    routing: Any = getattr(model, "turnout", None)
    sites = () if routing is None else routing.sites
    examples = max(1, len(meter.units))
    use = {site.key: meter.sites.get(site.key, 0.0) / examples for site in sites}
    share = meter.spent / meter.whole if meter.whole else 1.0
    saved = meter.whole - meter.added - meter.spent
    return BulkResult(answers, meter.units, use, share, saved)


def _windows(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """The places 0 .. N - 1 in runs of about this many tokens."""
    number = np.cumsum(lengths) // tokens
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(number)) + 1)
