"""The reward of a policy on rows whose labels are trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor

import turnout
from turnout import UserError
from turnout.train.trusted import trusted_reward


def test_the_trusted_reward_is_the_mean_over_the_rows() -> None:
    model: Any = turnout.install(BY_NAME["bert"].build(), [{"kind": "policy", "open": 0.5}])
    model.train()
    model.turnout.budget = 0.5
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(3, 60, (n,), generator=generator).tolist(), "labels": n % 3}
        for n in (3, 9, 5, 7, 4)
    ]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        widest = max(len(row["input_ids"]) for row in rows)
        ids = [row["input_ids"] + [0] * (widest - len(row["input_ids"])) for row in rows]
        mask = [[1] * len(r["input_ids"]) + [0] * (widest - len(r["input_ids"])) for r in rows]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    together = trusted_reward(model, rows, collate)
    assert model.training
    alone = [trusted_reward(model, [row], collate, batch_tokens=16) for row in rows]
    assert together == pytest.approx(sum(alone) / 5, abs=1e-5) and len(set(alone)) > 1
    with pytest.raises(UserError, match="at least one labelled row"):
        trusted_reward(model, [], collate)


def test_a_causal_language_model_is_judged_by_the_next_token() -> None:
    host = BY_NAME["llama"]
    spec = [{"kind": "policy", "price": 0.0, "open": 20.0}]
    model: Any = turnout.install(host.build(), spec).eval()
    model.turnout.budget = 0.5
    ids = host.inputs("none")["input_ids"][:2]
    with torch.no_grad():
        chance = model(input_ids=ids)["logits"][:, :-1].log_softmax(-1)
    right = chance.gather(2, ids[:, 1:, None])[..., 0].mean(1).exp().mean()

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}

    rows = [{"input_ids": each, "labels": each} for each in ids]
    assert trusted_reward(model, rows, collate) == pytest.approx(float(right), rel=1e-5)


def test_at_a_budget_of_1_there_is_nothing_to_judge() -> None:
    model: Any = turnout.install(BY_NAME["bert"].build(), ["policy"])
    with pytest.raises(UserError, match=r"set model\.turnout\.budget below 1"):
        trusted_reward(model, [{"input_ids": [1, 2], "labels": 0}], dict)
