"""What a language model would say if it stopped at a state: its last norm and its head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import UserError
from turnout.hosts.family import Stack


def read_out(model: Any, stack: Stack, state: Tensor) -> Tensor:
    """Logits (..., V) of states (..., D) that leave a block of a stack. Raises UserError where the
    family's record does not say what stands after the last block, or the model has no such head."""
    check_read_out(model, stack)
    if stack.final:
        state = model.base_model.get_submodule(stack.final)(state)
    return head_logits(model, state)


def head_logits(model: Any, state: Tensor) -> Tensor:
    """Logits (..., V) of the states (..., D) that a language model's last norm gives its head."""
    config = model.config.get_text_config()
    if config.model_type == "t5" and config.tie_word_embeddings:
        state = state * config.d_model**-0.5
    head = model.get_output_embeddings()
    logits = head(state.to(head.weight.dtype))
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        logits = logits + bias
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


def words_of(model: Any) -> int:
    """How many words a language model knows."""
    return int(model.config.get_text_config().vocab_size)


def check_read_out(model: Any, stack: Stack) -> None:
    """Raise UserError where states cannot be read out."""
    if stack.final is None:
        raise UserError(
            f"the record of {stack.blocks} does not say which norm stands after the last block: "
            "see `final` in docs/hosts.md"
        )
    if model.get_output_embeddings() is None:
        raise UserError(
            f"{type(model).__name__} writes no text: load it with a language-model head "
            "(AutoModelForCausalLM, AutoModelForSeq2SeqLM)"
        )
