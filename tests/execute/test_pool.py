"""Bulk work: pooled by depth, batch by batch and one by one give the same answers and work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import BY_NAME
from transformers import BertConfig, BertForTokenClassification

import turnout
from turnout.execute.pool import poolable, predict_bulk

ROUTERS: dict[str, dict[str, Any]] = {
    "exit": {"kind": "exit", "hidden": 0},
    "exit-patience": {"kind": "exit", "criterion": "patience", "hidden": 0},
    "exit-held": {"kind": "exit", "hold_first": 1, "criterion": "learned", "hidden": 0},
    "gate": {"kind": "gate"},
    "gate-some": {"kind": "gate", "layers": [0, 2]},
    "attention": {"kind": "attention", "width": 8},
    "attention-some": {"kind": "attention", "width": 8, "layers": [0, 2], "keep": "top-k"},
    "random-skip": {"kind": "random-skip", "rate": 0.5},
    "random-jump": {"kind": "random-jump", "p": 0.5},
}


def collate(rows: list[dict[str, Any]], left: bool = False) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids, masks = [], []
    for row in rows:
        gap = [0] * (longest - len(row["input_ids"]))
        real = [1] * len(row["input_ids"])
        ids.append(gap + row["input_ids"] if left else row["input_ids"] + gap)
        masks.append(gap + real if left else real + gap)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


def texts(count: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [
        {"input_ids": draw.integers(3, 60, int(n)).tolist()} for n in draw.integers(2, 20, count)
    ]


def host(name: str) -> Any:
    torch.manual_seed(0)
    if name == "tokens":
        config = BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            num_labels=3,
        )
        return BertForTokenClassification(config).eval()
    return BY_NAME[name].build().eval()


@pytest.mark.parametrize("budget", [1.0, 0.45, 0.2])
@pytest.mark.parametrize("name", ["bert", "modernbert", "tokens"])
@pytest.mark.parametrize("router", ROUTERS)
def test_pooled_equals_batched_equals_alone(router: str, name: str, budget: float) -> None:
    model = turnout.install(host(name), [ROUTERS[router]])
    generator = torch.Generator().manual_seed(1)
    for parameter in model.turnout.parameters():
        parameter.data.normal_(std=2, generator=generator)
    model.turnout.seed, model.turnout.budget = 1, budget
    assert poolable(model)
    rows = texts(37)
    pooled = predict_bulk(model, rows, collate, 64, window=3)
    batched = predict_bulk(model, rows, collate, 64, pooled=False)
    alone = predict_bulk(model, rows, collate, 1, pooled=False)
    for other in (batched, alone):
        np.testing.assert_array_equal(pooled.units, other.units)
        assert pooled.share == pytest.approx(other.share)
        assert pooled.use == pytest.approx(other.use)
        for ours, theirs in zip(pooled.logits, other.logits, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=5e-5, atol=2e-5)


def test_logits_of_tokens_are_cut_where_the_padding_is() -> None:
    model = turnout.install(host("tokens"), [{"kind": "random-skip", "rate": 0.0}])
    rows = texts(9)
    alone = predict_bulk(model, rows, collate, 1, pooled=False)
    for pooled in (False, True):
        left = predict_bulk(model, rows, lambda r: collate(r, left=True), 10_000, pooled=pooled)
        assert [len(row) for row in left.logits] == [len(row["input_ids"]) for row in rows]
    right = predict_bulk(model, rows, collate, 10_000, pooled=False)
    for ours, theirs in zip(right.logits, alone.logits, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-5, atol=2e-5)


def test_what_cannot_be_pooled_runs_batch_by_batch() -> None:
    rows = texts(5)
    model = turnout.install(host("bert"), [{"kind": "random-skip", "granularity": "token"}])
    model.turnout.seed = 0
    assert not poolable(model)
    result = predict_bulk(model, rows, collate, 64)
    assert len(result.logits) == 5 and 0 < result.share < 1
    turnout.uninstall(model)
    plain = predict_bulk(model, rows, collate, 64)
    assert plain.share == 1.0 and plain.use == {} and not plain.units.any()


def test_the_model_is_afterwards_in_the_mode_that_it_was_in() -> None:
    model = turnout.install(BY_NAME["bert"].build(), ["gate"]).train()
    held = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
    held.eval()  # as a frozen part of a model that learns
    first = predict_bulk(model, texts(3), collate).logits
    second = predict_bulk(model, texts(3), collate).logits
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)  # no dropout
    assert [module for module in model.modules() if not module.training] == [held]
