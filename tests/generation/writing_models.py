"""A tiny language model, plain and routed, and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
import transformers as hf

import turnout
from turnout.train import saving


def llama(**more: Any) -> hf.LlamaForCausalLM:
    """Three layers, 16 wide, a context of 64 tokens."""
    sizes: dict[str, Any] = dict(
        vocab_size=len(tiny.WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return hf.LlamaForCausalLM(hf.LlamaConfig(**{**sizes, **more})).eval()


def save_routed(folder: Path, **more: Any) -> Path:
    """A routed one, saved; each token skips layers at random."""
    model = llama(**more)
    turnout.install(model, [{"kind": "random-skip", "granularity": "token", "rate": 0.3}])
    saving.save(model, tiny.tokenizer(), folder)
    return folder
