"""Likelihoods of texts: the model's own loss, row by row, without the logits of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers as hf

import turnout
from turnout import UserError
from turnout.execute import words
from turnout.execute.likelihood import log_likelihood, reads_by_state
from turnout.execute.pool import predict_bulk
from turnout.tasks.language import collate

V = len(tiny.WORDS)
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
GEMMA = dict(head_dim=8, num_key_value_heads=1, final_logit_softcapping=2.0, vocab_size=V)
HOSTS: dict[str, Any] = {
    "llama": tiny.llama_config(),
    "gpt2": hf.GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3
    ),
    "gemma2": hf.Gemma2Config(**GEMMA, **SIZES),
    # divides its logits by a number that we know nothing of
    "granite": hf.GraniteConfig(
        vocab_size=V, logits_scaling=4.0, pad_token_id=0, bos_token_id=2, eos_token_id=3, **SIZES
    ),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    config = HOSTS[name]
    config.initializer_range = 0.3
    return hf.AutoModelForCausalLM.from_config(config).eval()


def rows(count: int = 7) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in range(count):
        ids = torch.randint(4, V, (3 + 2 * n,), generator=generator).tolist()
        labels = [-100, -100, *ids[2:]]
        made.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})
    return made


def together(some: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return collate(some, 0)


@pytest.mark.parametrize("name", HOSTS)
def test_it_is_the_models_own_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    monkeypatch.setattr(words, "PIECE", 3 * V)
    assert reads_by_state(model, rows()[0], together) is (name != "granite")
    held: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: held.append(out.numel()))
    found = log_likelihood(model, rows(), together, batch_tokens=40)
    assert name == "granite" or max(held) <= 5 * V  # three tokens, or the last of a batch of five
    for row, (total, count, right) in zip(rows(), found.logits, strict=True):
        with torch.no_grad():
            outputs = model(**together([row]))
        assert count == len(row["input_ids"]) - 2
        assert total == pytest.approx(-count * float(outputs.loss), rel=1e-5)
        best = outputs.logits[0, 1:-1].argmax(-1)
        assert right == int((best == torch.tensor(row["input_ids"][2:])).sum())


def test_labels_may_stand_where_they_are_predicted() -> None:
    model = build("llama")
    shifted = [
        {
            "input_ids": row["input_ids"][:-1],
            "labels": row["labels"][1:],
            "attention_mask": row["attention_mask"][1:],
        }
        for row in rows()
    ]
    wanted = log_likelihood(model, rows(), together).logits
    found = log_likelihood(model, shifted, together, ahead=True).logits
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_routed_model_is_as_likely_alone_and_its_work_is_counted() -> None:
    routers = [{"kind": "random-skip", "granularity": "token", "site": site} for site in SITES]
    model: Any = turnout.install(build("llama"), routers)
    model.turnout.seed = 3
    with model.turnout.at(0.5):
        found = log_likelihood(model, rows(), together)
        alone = [log_likelihood(model, [row], together).logits[0] for row in rows()]
        counted = predict_bulk(model, rows(), together)
    np.testing.assert_allclose(found.logits, alone, rtol=1e-5)
    assert found.share == pytest.approx(counted.share) and 0 < found.share < 1
    np.testing.assert_allclose(found.units, counted.units)
    assert found.use == pytest.approx(counted.use)
    whole = np.stack(log_likelihood(model, rows(), together).logits)
    assert (np.abs(whole - np.stack(found.logits))[:, 0] > 1e-4).any()


SITES = ("attention", "ffn")


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="BertModel is no causal language model"):
        log_likelihood(hf.BertModel(tiny.bert_config()), rows(), together)
