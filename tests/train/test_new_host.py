"""Hosts that nobody has trained yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoTokenizer

from turnout import UserError
from turnout.train.new_host import NewHost, new_host
from turnout.train.saving import load_host

SMALL: dict[str, dict[str, Any]] = {
    "bart": dict(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=32,
    ),
    "bert": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24),
    "gpt2": dict(n_embd=16, n_layer=1, n_head=2),
    "llama": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24),
}  # fmt: skip
CLASSES = {
    "bart": "BartForConditionalGeneration",
    "bert": "BertModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
}


def page(folder: Path, family: str = "bart", **config: Any) -> NewHost:
    paths = tiny.save_reviews(folder, 40)
    tokenizer = {"texts": [str(paths["train"])], "vocabulary": 300, "max_length": 32}
    fields = {**SMALL.get(family, {}), **config}
    return NewHost.model_validate({"family": family, "config": fields, "tokenizer": tokenizer})


@pytest.mark.parametrize("family", SMALL)
def test_a_host_and_its_tokenizer(family: str, tmp_path: Path) -> None:
    out = new_host(page(tmp_path, family), tmp_path / "host")
    model, tokenizer = load_host(out), AutoTokenizer.from_pretrained(out)
    assert type(model).__name__ == CLASSES[family] and model.config.vocab_size == len(tokenizer)
    text = "A lovely café, 电影!"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    again = load_host(new_host(page(tmp_path, family), tmp_path / "again"))
    both = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    with pytest.raises(UserError, match="is there already"):
        new_host(page(tmp_path, family), out)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("bartt", {}, "family 'bartt'"),
        ("bart", {"layers": 3}, r"config\.layers: BartConfig has no such field"),
        ("bart", {"encoder_attention_heads": 3}, "config of 'bart'"),
    ],
)
def test_mistakes_are_told(family: str, config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        new_host(page(tmp_path, family, **config), tmp_path / "host")
    assert not (tmp_path / "host").exists()
