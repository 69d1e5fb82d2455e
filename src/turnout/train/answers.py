"""Which logits answer which labels."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def paired(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the labels that they are judged by, place by place. Causal language models, whose
    loss shifts the labels, answer (B, T - 1) of (B, T): each token is judged by the next."""
    causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return (logits[:, :-1], labels[:, 1:]) if causal else (logits, labels)
