"""Which logits answer which labels."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def predicts_next(model: nn.Module) -> bool:
    """Is this a causal language model, whose loss shifts the labels: a token's answer is judged by
    the token after it."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def paired(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the labels that they are judged by, place by place: causal language models answer
    (B, T - 1) of (B, T) labels, others all."""
    return (logits[:, :-1], labels[:, 1:]) if predicts_next(model) else (logits, labels)
