"""Bulk work of models that write their answers: batches of like length through ``generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from turnout.cost import added_flops, trace_dense_flops, trace_flops
from turnout.execute.batches import Collate, Meter, Row, groups_by_length, inputs_of, lengths_of
from turnout.execute.mode import evaluating
from turnout.execute.pool import BulkResult, predict_bulk
from turnout.flow import Flow


def run_bulk(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    batch_tokens: int = 4096,
    generate: Mapping[str, Any] | None = None,
) -> BulkResult:
    """``predict_bulk``, or where ``generate`` holds its options, ``generate_bulk``."""
    if generate is None:
        return predict_bulk(model, rows, collate, batch_tokens)
    return generate_bulk(model, rows, collate, batch_tokens, **generate)


@torch.inference_mode()
def generate_bulk(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    batch_tokens: int = 4096,
    **options: Any,
) -> BulkResult:
    """What an encoder-decoder writes for encoded rows: in ``logits`` the ids of each answer,
    special tokens included. options: of ``generate``. Work is summed over the encoder's pass and
    all of the decoder's, of every beam."""
    meter = Meter(len(rows))
    found: list[Any] = [None] * len(rows)
    routing: Any = getattr(model, "turnout", None)
    blocks = 0.0 if routing is None else float(len(routing.block_costs))
    with evaluating(model):
        for group in groups_by_length(lengths_of(rows), batch_tokens):
            unlabelled = [{k: v for k, v in rows[i].items() if k != "labels"} for i in group]
            inputs = inputs_of(model, unlabelled, collate)
            inputs.pop("use_cache", None)
            before = meter.spent, meter.whole

            def count(flow: Flow) -> None:
                if not flow.trace:  # the encoder's pass, where only the decoder is routed
                    return
                meter.spent += float(trace_flops(flow.trace))
                meter.whole += float(trace_dense_flops(flow.trace))
                meter.added += added_flops(flow.trace)

            if routing is None:
                ids = model.generate(**inputs, **options)  # type: ignore[operator]
            else:
                with routing.watched(count):
                    ids = model.generate(**inputs, **options)  # type: ignore[operator]
            spent, whole = meter.spent - before[0], meter.whole - before[1]
            meter.units[group] = blocks * (spent / whole if whole else 1.0)
            for place, row in zip(group, ids.cpu().numpy(), strict=True):
                found[place] = np.asarray(row)
    share = meter.spent / meter.whole if meter.whole else 1.0
    saved = meter.whole - meter.added - meter.spent
    return BulkResult(found, meter.units, {}, share, saved)
