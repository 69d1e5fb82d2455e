"""Heads: what is skipped is not computed, and what cannot be routed is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor
from torch.nn import functional as F

import turnout
from turnout import UserError
from turnout.execute.heads import LONG, HeadPlan

UNEQUAL = torch.tensor([[1.0, 0, 0.5], [0, 0, 0], [1, 0, 1], [1, 1, 1]])
EQUAL = torch.tensor([[1.0, 0, 1], [1, 0.5, 0], [0, 1, 1], [1, 0, 1]])
ALIKE = torch.tensor([[1.0, 0, 1]]).expand(4, -1)
NONE = torch.zeros(4, 3)


def test_slots_hold_what_runs_then_what_does_not() -> None:
    plan = HeadPlan(UNEQUAL[:3, None], (3, 5))
    assert plan.units_BS.tolist() == [[0, 2], [0, 1], [0, 2]]
    assert plan.slots == 2 and plan.shared_S is None
    assert plan.columns(torch.tensor([0, 2]), 6).tolist() == [0, 1, 4, 5]
    assert HeadPlan(NONE[:, None], (4, 5)).slots == 1  # a host cannot reshape to no heads


@pytest.mark.parametrize("length", [5, LONG])
@pytest.mark.parametrize("weight_BU", [UNEQUAL, EQUAL, ALIKE, NONE])
@pytest.mark.parametrize("per_token", [False, True])
def test_projections_are_those_of_the_units_that_run(
    length: int, weight_BU: Tensor, per_token: bool
) -> None:
    """Values and gradients of the three ways, against all of the work and a mask."""
    torch.manual_seed(0)
    weight_BTU = weight_BU[:, None]
    if per_token:
        weight_BTU = weight_BTU * (torch.rand(4, length, 3) < 0.6)
    plan = HeadPlan(weight_BTU, (4, length))
    x = torch.randn(4, length, 8, dtype=torch.double, requires_grad=True)
    weight = torch.randn(6, 8, dtype=torch.double, requires_grad=True)
    back = torch.randn(8, 6, dtype=torch.double, requires_grad=True)
    bias = torch.randn(6, dtype=torch.double, requires_grad=True)

    runs = (weight_BTU != 0).repeat_interleave(2, -1).expand(4, length, -1)
    seen = (weight_BTU != 0).any(1, keepdim=True).repeat_interleave(2, -1).expand(4, length, -1)
    for sparse, mask in ((True, runs), (False, seen)):
        found = plan.widen(plan.project(x, weight, bias, sparse))
        _same(found, F.linear(x, weight, bias) * mask, (x, weight, bias))
    inner = torch.randn(4, length, 6, dtype=torch.double, requires_grad=True)
    found = plan.merge(plan.take(inner), back, None)
    _same(found, F.linear(inner * runs, back), (inner, back))


def _same(found: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, grad)
    if found.requires_grad:
        more = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        torch.testing.assert_close(torch.autograd.grad(found, inputs, grad, **more), wanted)
    else:  # nothing runs
        assert not any(bool(each.any()) for each in wanted)


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
