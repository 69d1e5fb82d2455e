"""Experts that a host has by itself, and routers over them."""

from __future__ import annotations

import pytest
import torch
from fixed_router import FixedConfig, fixed_router
from hosts_table import BY_NAME

import turnout
from turnout.execute.moe import kept_of
from turnout.execute.scope import reference_execution

MIXTURES = ["mixtral", "qwen3_moe", "olmoe"]


def test_a_token_keeps_the_best_of_the_host_unless_a_router_keeps_none() -> None:
    chosen = torch.tensor([[2, 0], [2, 0], [1, 3], [3, 1]])
    weight = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.4, 0.6], [0.5, 0.5]])
    route = torch.tensor(
        [[1.0, 0, 0, 0], [0, 1.0, 0, 1.0], [0.5, 0, 0, 0], [0, 0, 0, 0]], requires_grad=True
    )
    kept = kept_of(route, chosen, weight)
    assert kept.tolist() == [[0, 1], [1, 0], [0, 1], [0, 0]]
    kept.sum().backward()
    assert route.grad is not None and route.grad[0, 0] == 1 and route.grad[1, 2] == 0


@pytest.mark.parametrize("name", MIXTURES)
def test_no_token_is_dropped_by_a_top_k_that_the_host_did_not_choose(name: str) -> None:
    host = BY_NAME[name]
    gate = {"kind": "gate", "site": "expert", "granularity": "token", "keep": "top-k", "top": 1}
    model = turnout.install(host.build(), [gate])
    inputs = host.inputs()
    with torch.no_grad(), turnout.trace() as trace:
        fast = model(**inputs)["logits"]
        with reference_execution():
            slow = model(**inputs)["logits"]
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    for route in trace.values():
        count_BT = (route.weight_BTU != 0).sum(-1)
        valid_BT = trace.valid_BT(route.site.stack)
        assert (count_BT[valid_BT] == 1).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_what_a_router_drops_is_dropped(name: str) -> None:
    host = BY_NAME[name]
    with fixed_router():
        router = FixedConfig(site="expert", granularity="token", keep=0)
        model = turnout.install(host.build(), [router])
    with torch.no_grad(), turnout.trace() as trace:
        model(**host.inputs())
    assert not any(route.active_BT.any() for route in trace.values())
