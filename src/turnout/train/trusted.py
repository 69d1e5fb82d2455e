"""The reward of a policy on rows whose labels are trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row, groups_by_length, inputs_of, lengths_of
from turnout.execute.mode import evaluating
from turnout.train.answers import paired
from turnout.train.search import policy_of


@torch.inference_mode()
def trusted_reward(
    model: PreTrainedModel, rows: Sequence[Row], collate: Collate, batch_tokens: int = 4096
) -> float:
    """Mean reward of a policy on labelled rows, at the model's budget as it stands: quality - price
    x share of the work. Raises UserError for a model without a policy, or no rows."""
    router: Any = policy_of(model)
    routing: Any = model.turnout
    if not len(rows):
        raise UserError("trusted_reward needs at least one labelled row")
    check_asked(model)
    total = 0.0
    explored, router.explores = router.explores, None
    try:
        with evaluating(model):
            for group in groups_by_length(lengths_of(rows), batch_tokens):
                batch = [dict(rows[i]) for i in group]
                labels = collate(batch)["labels"].to(model.device)
                logits = model(**inputs_of(model, batch, collate))["logits"]
                judged = paired(model, logits, labels)
                total += float(router.reward(routing.current_flow(), *judged).sum())
    finally:
        router.explores = explored
    return total / len(rows)


def check_asked(model: PreTrainedModel) -> None:
    """Raise UserError where a policy is not asked."""
    routing: Any = model.turnout
    if routing.budget >= 1:
        raise UserError(
            "at a budget of 1 everything runs, whatever a policy says: set model.turnout.budget "
            "below 1 (0.5 follows it as it was trained)"
        )
