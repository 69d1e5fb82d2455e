"""How likely a causal language model finds texts: sums of log probabilities, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import (
    Collate,
    Meter,
    Row,
    groups_by_length,
    labelled_inputs_of,
    lengths_of,
    unread,
)
from turnout.execute.mode import evaluating
from turnout.execute.pool import BulkResult, bulk_result
from turnout.execute.words import (
    agrees,
    has_own_head,
    is_causal,
    labelled,
    last_states,
    piece_of,
)
from turnout.hosts.read_out import head_logits, words_of

WHOLE = 1 << 26  # logits of a batch where a model gives none but all


@torch.inference_mode()
def log_likelihood(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    batch_tokens: int = 4096,
    ahead: bool = False,
) -> BulkResult:
    """Log probabilities of the labels of encoded rows, each given the tokens before it.

    rows: ``input_ids`` and ``labels`` at the same places, -100 where there is none (the host's own
    convention: the label of a token is the token itself). ahead: labels stand one place earlier, at
    the token that they are predicted from, so that a last word need not be read. The result's
    ``logits`` are (3,) a row: the sum of the log probabilities in nats, the number of labels, and
    how many of them were the likeliest word. Where the host's last states can be read word by word,
    no batch's logits are held. Raises UserError for a model that is no causal language model.
    """
    check_causal(model)
    meter, lengths = Meter(len(rows)), lengths_of(rows)
    sums_N3 = np.zeros((len(rows), 3))
    routing: Any = getattr(model, "turnout", None)
    with evaluating(model):
        by_state = len(rows) > 0 and reads_by_state(model, rows[int(lengths.argmin())], collate)
        if not by_state:
            batch_tokens = min(batch_tokens, max(1, WHOLE // words_of(model)))
        for group in groups_by_length(lengths, batch_tokens):
            inputs, labels_BT = labelled_inputs_of(model, [rows[i] for i in group], collate)
            assert labels_BT is not None
            found = labelled(labels_BT, ahead)
            if by_state:
                with last_states(model) as seen:
                    model(**inputs, **unread(model))
                read: Callable[[Tensor], Tensor] = partial(head_logits, model)
                sums_N3[group] = _sums(seen[-1], found, read, piece_of(model))
            else:
                logits_BTV = model(**inputs)["logits"]
                sums_N3[group] = _sums(logits_BTV, found, _same, piece_of(model))
            if routing is not None:
                meter.count(group, routing)
    return bulk_result(model, list(sums_N3), meter)


def reads_by_state(model: PreTrainedModel, row: Row, collate: Collate) -> bool:
    """Do a model's last states give its own logits, as one row shows."""
    if not has_own_head(model):
        return False
    inputs = labelled_inputs_of(model, [row], collate)[0]
    with last_states(model) as seen:
        logits = model(**inputs, **unread(model))["logits"]
    return agrees(model, seen[-1], logits)


def check_causal(model: PreTrainedModel) -> None:
    """Raise UserError for a model that does not predict each next token."""
    if not is_causal(model):
        raise UserError(
            f"{type(model).__name__} is no causal language model: load one with "
            "AutoModelForCausalLM"
        )


def _same(logits_NV: Tensor) -> Tensor:
    return logits_NV


def _sums(
    values: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    logits_of: Callable[[Tensor], Tensor],
    size: int,
) -> np.ndarray:
    """(B, 3) from states or logits (B, T, ...) of the labelled tokens that were found, in pieces of
    so many."""
    row_N, place_N, label_N = found
    out_B3 = torch.zeros(len(values), 3, dtype=torch.float64, device=values.device)
    for start in range(0, len(label_N), size):
        piece = slice(start, start + size)
        logits_NV = logits_of(values[row_N[piece], place_N[piece]]).float()
        label = label_N[piece]
        log_N = logits_NV.gather(1, label[:, None])[:, 0] - logits_NV.logsumexp(-1)
        right_N = logits_NV.argmax(-1) == label
        each_N3 = torch.stack([log_N, torch.ones_like(log_N), right_N.float()], 1)
        out_B3.index_add_(0, row_N[piece], each_N3.double())
    return out_B3.cpu().numpy()
