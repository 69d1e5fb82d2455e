"""The words of a causal language model, in pieces: logits of a large vocabulary are never held for
a whole batch.

N labelled tokens of a batch, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from turnout.execute.batches import unread
from turnout.flow import IGNORED
from turnout.hosts.read_out import head_logits, words_of
from turnout.routers.base import Router

PIECE = 1 << 24  # logits held at once: 64 MB in float32
LIKE = {torch.float32: 1e-4}  # how near to the model's own logits ours must be; else:
ROUGHLY = 2e-2


def is_causal(model: Any) -> bool:
    """Is it a language model whose every token is followed by the one that it predicts."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def has_own_head(model: PreTrainedModel) -> bool:
    """May words be read off the last states: the head gives what the model answers, unless a router
    changes its answers, or the class always computes all logits."""
    routing: Any = getattr(model, "turnout", None)
    changed = routing is not None and any(
        type(router).finish is not Router.finish for router in routing.all_routers()
    )
    return is_causal(model) and bool(unread(model)) and not changed


@contextmanager
def last_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The states (B, T, D) that the blocks of a model hand to its head, of each pass inside."""
    seen: list[Tensor] = []
    base: Any = model.base_model
    handle = base.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def agrees(model: PreTrainedModel, states_BTD: Tensor, logits_B1V: Tensor) -> bool:
    """Does our reading of the last state give the model's own logits. Some families do more to them
    than we know of."""
    ours, own = head_logits(model, states_BTD[:, -1:]).float(), logits_B1V[:, -1:].float()
    near = LIKE.get(states_BTD.dtype, ROUGHLY) * float(own.abs().max())
    return ours.shape == own.shape and float((ours - own).abs().max()) <= near


def labelled(labels_BT: Tensor, ahead: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N,) and places (N,) of the tokens that predict a labelled one, and its label (N,).
    ahead: a label stands at the token that predicts it, not at the token that it is."""
    next_BT = labels_BT if ahead else labels_BT[:, 1:]
    row_N, place_N = (next_BT != IGNORED).nonzero(as_tuple=True)
    return row_N, place_N, next_BT[row_N, place_N]


def piece_of(model: PreTrainedModel) -> int:
    """How many tokens' logits may be held at once."""
    return max(1, PIECE // words_of(model))
