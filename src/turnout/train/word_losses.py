"""Losses of a causal language model over a large vocabulary, in pieces.

The logits of a batch, their softmax and both gradients would be most of the memory of a training:
2,048 tokens of a vocabulary of 262,144 are 2 GB, several times over. Here the head is applied to a
piece of the tokens at a time, and again when the gradient is taken, so that one piece is held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from turnout.execute.batches import unread
from turnout.execute.words import agrees, has_own_head, labelled, last_states, piece_of
from turnout.hosts.read_out import head_logits
from turnout.objectives import distill
from turnout.routers.base import Router


def in_pieces(model: nn.Module) -> bool:
    """Can a model be trained so: its head reads single states, its own loss is of words alone, and
    no router's loss asks for the logits of a whole batch."""
    if not isinstance(model, PreTrainedModel) or not has_own_head(model):
        return False
    if getattr(model.config, "output_router_logits", False):  # then a loss of its experts is added
        return False
    routing: Any = getattr(model, "turnout", None)
    return routing is None or not any(
        router.reads_logits and type(router).losses is not Router.losses
        for router in routing.all_routers()
    )


def forward_states(
    model: nn.Module, host: PreTrainedModel, inputs: dict[str, Any]
) -> tuple[Any, Tensor, bool]:
    """A pass that computes the last token's logits alone: outputs, the states that the head is
    given (B, T, D), and whether reading these gives the model's own logits.

    model: what is called; host: the same without what a trainer wraps around it.
    """
    unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
    with last_states(host) as seen:
        outputs = model(**unlabelled, **unread(host))
    return outputs, seen[-1], agrees(host, seen[-1], outputs["logits"])


def word_losses(
    host: PreTrainedModel,
    states_BTD: Tensor,
    labels_BT: Tensor,
    teacher: PreTrainedModel | None = None,
    taught_BTD: Tensor | None = None,
) -> dict[str, Tensor]:
    """``task``: mean of -log p of the labels, as the host's own loss; ``distill``: as
    ``objectives.distill``, where a teacher's states are given. Labels as the host takes them: each
    is predicted from the token before. No label at all gives 0."""
    row_N, place_N, label_N = labelled(labels_BT)
    weight: Any = host.get_output_embeddings().weight  # type: ignore[union-attr]
    sums = [torch.zeros(2, device=states_BTD.device)]

    def piece_sums(states_ND: Tensor, label: Tensor, taught_ND: Tensor | None) -> Tensor:
        logits_NV = head_logits(host, states_ND).float()
        told = F.cross_entropy(logits_NV, label, reduction="sum")
        if teacher is None or taught_ND is None:
            return torch.stack([told, torch.zeros_like(told)])
        with torch.no_grad():
            taught_NV = head_logits(teacher, taught_ND).float()
        return torch.stack([told, distill(logits_NV, taught_NV) * len(label)])

    size, at = piece_of(host), (row_N, place_N)
    parts = [states_BTD[at].split(size), label_N.split(size)]
    parts.append([None] * len(parts[0]) if taught_BTD is None else taught_BTD[at].split(size))
    learns = states_BTD.requires_grad or weight.requires_grad
    for given in zip(*parts, strict=True):
        if learns and len(label_N) > size:
            sums.append(checkpoint(piece_sums, *given, use_reentrant=False))  # type: ignore[arg-type]
        else:
            sums.append(piece_sums(*given))
    told, taught = torch.stack(sums).sum(0) / max(1, len(label_N))
    return {"task": told} if teacher is None else {"task": told, "distill": taught}
