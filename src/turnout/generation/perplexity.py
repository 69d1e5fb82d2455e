"""How likely a model finds texts that it, or another path through it, has written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from turnout.errors import UserError
from turnout.flow import IGNORED
from turnout.generation.dials import dense
from turnout.generation.writer import Writer


@torch.inference_mode()
def surprise(
    writer: Writer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int = 16
) -> list[tuple[float, int]]:
    """Of each pair of a prompt and what follows it, both token ids: the negative log-likelihood of
    the latter, in nats, and how many tokens that is over. The model is its dense host here (see
    ``dense``). What lies beyond the context is not counted.

    Raises UserError for an empty prompt.
    """
    if any(not prompt for prompt, _ in pairs):
        raise UserError("a prompt is empty: nothing can follow it")
    found: list[tuple[float, int]] = []
    with dense(writer.model):
        for first in range(0, len(pairs), batch):
            found += _batch(writer, pairs[first : first + batch])
    return found


def _batch(
    writer: Writer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, int]]:
    model: Any = writer.model
    if model.config.is_encoder_decoder:
        inputs = {
            **_padded([list(prompt) for prompt, _ in pairs], writer, "input_ids"),
            "labels": _ids([list(after) or [IGNORED] for _, after in pairs], IGNORED, writer),
        }
        labels_BT = inputs["labels"]
        logits_BTV = model(**inputs).logits
    else:
        rows = [[*prompt, *after][: writer.context] for prompt, after in pairs]
        inputs = _padded(rows, writer, "input_ids")
        labels = [
            [IGNORED] * min(len(prompt), len(row)) + row[len(prompt) :]
            for row, (prompt, _) in zip(rows, pairs, strict=True)
        ]
        labels_BT = _ids(labels, IGNORED, writer)[:, 1:]
        logits_BTV = model(**inputs, use_cache=False).logits[:, :-1]
    losses_BT = torch.nn.functional.cross_entropy(
        logits_BTV.float().transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none"
    )
    counts_B = (labels_BT != IGNORED).sum(1)
    return list(zip(losses_BT.sum(1).tolist(), counts_B.tolist(), strict=True))


def _padded(rows: list[list[int]], writer: Writer, name: str) -> dict[str, Tensor]:
    pad = int(writer.tokenizer.pad_token_id)
    mask = [[1] * len(row) for row in rows]
    return {name: _ids(rows, pad, writer), "attention_mask": _ids(mask, 0, writer)}


def _ids(rows: list[list[int]], fill: int, writer: Writer) -> Tensor:
    """(B, T), padded on the right: what is read has no end to be at."""
    length = max(map(len, rows))
    full = [row + [fill] * (length - len(row)) for row in rows]
    return torch.tensor(full, device=writer.model.device)
