"""What tokens see, tried out on the host itself."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as hf

from turnout.hosts.sight import keeps_apart, looks_back

BLOOM = dict(vocab_size=20, hidden_size=8, n_layer=1, n_head=2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama_sees_its_own_text_up_to_itself(attention: str) -> None:
    torch.manual_seed(0)
    config = tiny.llama_config(attn_implementation=attention)
    model = hf.LlamaForCausalLM(config).train()
    assert looks_back(model) and keeps_apart(model) and model.training


def test_bloom_counts_positions_by_itself() -> None:
    torch.manual_seed(0)
    model = hf.BloomForCausalLM(hf.BloomConfig(initializer_range=0.5, **BLOOM))
    assert looks_back(model) and not keeps_apart(model)


def test_an_encoder_looks_both_ways_unless_it_is_told_not_to() -> None:
    for decodes in (False, True):
        torch.manual_seed(0)
        model = hf.BertLMHeadModel(tiny.bert_config(is_decoder=decodes))
        assert looks_back(model) is decodes
