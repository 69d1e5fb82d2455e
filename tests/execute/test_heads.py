"""Heads: what is skipped is not computed, and what cannot be routed is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor

import turnout
from turnout import UserError
from turnout.execute.heads import HeadPlan


def test_sequences_with_the_same_heads_go_together() -> None:
    weight = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]])[:, None]
    groups = HeadPlan(weight).groups
    found = {tuple(units.tolist()): rows for rows, units in groups}
    assert set(found) == {(0, 2), (), (0, 1, 2)}
    rows = found[(0, 2)]
    assert rows is not None and rows.tolist() == [0, 2]
    assert HeadPlan(weight[:1].expand(4, 1, 3)).groups[0][0] is None  # all alike


def test_columns_are_those_of_the_units() -> None:
    plan = HeadPlan(torch.ones(1, 1, 3))
    assert plan.columns(torch.tensor([0, 2]), 6).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_skipped_heads_are_not_computed(name: str) -> None:
    """Weights of a head that nobody keeps may hold anything."""
    host = BY_NAME[name]
    model = turnout.install(host.build(), [{"kind": "random-skip", "site": "head", "rate": 1.0}])
    inputs = host.inputs("none")
    with torch.no_grad():
        before = model(**inputs)["logits"]
        for module in model.modules():
            if type(module).__name__ in ("Linear", "Conv1D") and "_turnout_scope" in vars(module):
                scope = module._turnout_scope
                if any(leaf is module for _, _, leaf in scope.leaves) and scope is _attention(
                    model, scope
                ):
                    module.weight.fill_(torch.nan)
        torch.testing.assert_close(model(**inputs)["logits"], before)


def _attention(model: Any, scope: Any) -> Any:
    """The scope, if it is that of an attention sub-block."""
    handles = [m._turnout for m in model.modules() if "_turnout" in vars(m)]
    return next((h.scopes["attention"] for h in handles if h.scopes["attention"] is scope), None)


def test_a_cache_holds_the_keys_of_all_heads() -> None:
    host = BY_NAME["llama"]
    model = turnout.install(host.build(), [{"kind": "random-skip", "site": "head", "rate": 0.5}])
    model.turnout.seed = 1
    inputs: dict[str, Tensor] = host.inputs("none")
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        plain = turnout.uninstall(model)(**inputs, use_cache=True).past_key_values
    torch.testing.assert_close(cache.layers[0].keys, plain.layers[0].keys)


@pytest.mark.parametrize(
    "others",
    [
        {"kind": "gate", "site": "attention"},
        {"kind": "gate", "site": "layer", "granularity": "token"},
    ],
)
def test_the_attention_of_a_block_with_routed_heads_is_theirs(others: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"heads of \('encoder', 0\) are routed|heads of encoder.0"):
        turnout.install(BY_NAME["bert"].build(), [{"kind": "gate", "site": "head"}, others])


def test_nobody_watches_attention_whose_heads_are_routed() -> None:
    routers = [{"kind": "gate", "site": "head"}, {"kind": "token-attention", "site": "ffn"}]
    with pytest.raises(UserError, match="looks at their attention"):
        turnout.install(BY_NAME["bert"].build(), routers)
