"""Losses in pieces: those of whole batches, in value and in every gradient."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
import transformers as hf
from transformers import TrainingArguments

import turnout
from turnout import objectives
from turnout.execute import words
from turnout.tasks.language import LanguageConfig, LanguageTask
from turnout.train.config import TrainConfig
from turnout.train.trainer import RoutedTrainer
from turnout.train.word_losses import forward_states, in_pieces, word_losses

V = len(tiny.WORDS)
GATES = [{"kind": "gate", "granularity": "token", "site": site} for site in ("attention", "ffn")]


def host(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return hf.LlamaForCausalLM(tiny.llama_config())


def packed(model: Any) -> dict[str, torch.Tensor]:
    task = LanguageTask(LanguageConfig(train="x", max_length=16))
    texts = [" ".join(tiny.FILLER[n : n + 2 + n % 4]) for n in range(8)]
    task.meet(model)
    rows = task.encode_train(datasets.Dataset.from_dict({"text": texts}), tiny.tokenizer())
    batch = task.collator(tiny.tokenizer())([dict(row) for row in rows])  # type: ignore[call-overload]
    assert "position_ids" in batch and "attention_mask" not in batch
    return batch


@pytest.mark.parametrize("taught", [False, True])
def test_they_are_those_of_whole_batches(taught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "PIECE", 3 * V)
    model, teacher = host(), host(1)
    batch = {**packed(model), "use_cache": False}
    outputs = model(**batch)
    keep = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        dense = teacher(**batch)["logits"]
    whole = outputs["loss"]
    if taught:
        whole = whole + objectives.distill(outputs["logits"][:, :-1], dense[:, :-1], keep)
    whole.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    _, states_BTD, agrees = forward_states(model, model, batch)
    assert agrees
    with torch.no_grad():
        taught_BTD = forward_states(teacher, teacher, batch)[1]
    more = (teacher, taught_BTD) if taught else ()
    parts = word_losses(model, states_BTD, batch["labels"], *more)
    assert set(parts) == ({"task", "distill"} if taught else {"task"})
    assert float(sum(parts.values()).detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.stack(list(parts.values())).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_rows_without_a_label_cost_nothing() -> None:
    model = host()
    batch = packed(model)
    _, states_BTD, _ = forward_states(model, model, {**batch, "use_cache": False})
    parts = word_losses(model, states_BTD, torch.full_like(batch["labels"], -100))
    assert float(parts["task"].detach()) == 0


def trainer(
    model: Any, teacher: Any, folder: Path, bf16: bool = False, **weights: float
) -> RoutedTrainer:
    return RoutedTrainer(
        model=model,
        args=TrainingArguments(str(folder), report_to=[], use_cpu=True, bf16=bf16),
        train_config=TrainConfig(),
        weights=objectives.ObjectivesConfig(**weights),
        teacher=teacher,
    )


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_a_routed_step_is_the_same_in_pieces(hidden: float, tmp_path: Path) -> None:
    dense = host()
    model = turnout.install(deepcopy(dense), GATES).train()
    batch, found = packed(dense), []
    held: list[int] = []
    head: Any = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: held.append(out.shape[1]))
    for by_pieces in (True, False):
        each = trainer(model, dense, tmp_path, hidden=hidden, distill=0.5)
        each._by_pieces = by_pieces
        torch.manual_seed(0)
        held.clear()
        loss = each.compute_loss(model, batch)
        # the last token's alone, then tokens in a list: never (B, T, V)
        assert (max(len(batch["input_ids"][0]), 1) in held) is not by_pieces
        model.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients, set(each._meters)))
    (ours, gradients, names), (theirs, wanted, others) = found
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5) and names == others
    assert gradients.keys() == wanted.keys() and any("turnout." in name for name in gradients)
    for name, value in gradients.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


def test_the_heads_agree_in_bf16_too(tmp_path: Path) -> None:
    dense = host()
    model: Any = turnout.install(deepcopy(dense), GATES)
    each = trainer(model, dense, tmp_path, bf16=True, distill=0.5)
    wrapped = each.accelerator.prepare(model).train()
    loss = each.compute_loss(wrapped, packed(dense))
    assert each._by_pieces and torch.isfinite(loss) and {"loss_distill"} <= set(each._meters)


def test_routers_that_ask_for_logits_get_them() -> None:
    assert in_pieces(turnout.install(host(), GATES))
    assert not in_pieces(turnout.install(host(), {"kind": "policy"}))
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    mixture = dict(num_key_value_heads=1, num_local_experts=2, pad_token_id=0)
    for adds in (True, False):  # a loss that spreads tokens over experts
        config = hf.MixtralConfig(vocab_size=V, output_router_logits=adds, **sizes, **mixture)
        assert in_pieces(hf.MixtralForCausalLM(config)) is not adds
    assert not in_pieces(hf.BertForMaskedLM(tiny.bert_config()))
