"""Sparse upcycling: experts that begin as copies of the host's network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, HOSTS, Host
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.execute.scope import reference_execution

GATE: dict[str, Any] = {
    "kind": "gate",
    "site": "expert",
    "granularity": "token",
    "keep": "top-k",
    "top": 1,
    "experts": 4,
    "split": "copied",
}
DENSE = [host for host in HOSTS if host.name not in ("mixtral", "qwen3_moe", "olmoe")]


def routed(host: Host, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return turnout.install(host.build(), [{**GATE, **more, "stack": host.stacks[0]}])


def shake(model: Any) -> None:
    """Make the copies differ."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.turnout.units.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("host", DENSE, ids=lambda host: host.name)
def test_copies_are_the_host_until_they_learn(host: Host, tmp_path: Any) -> None:
    plain, inputs = host.build(), host.inputs()
    with torch.no_grad():
        before = plain(**inputs)["logits"]
        for top in (1, 2):
            model = routed(host, top=top)
            torch.testing.assert_close(model(**inputs)["logits"], before, rtol=1e-4, atol=1e-4)
        shake(model)
        after = model(**inputs)["logits"]
        assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
        with reference_execution():
            expected = model(**inputs)["logits"]
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
        model.save_pretrained(tmp_path)
        again = turnout.load(tmp_path)
        torch.testing.assert_close(again(**inputs)["logits"], after)
        turnout.uninstall(model)
        state = plain.state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_token_takes_so_many_copies_and_pays_for_them() -> None:
    host = BY_NAME["bert"]
    for top in (1, 2):
        model = routed(host, top=top)
        with torch.no_grad(), turnout.trace() as trace:
            model(**host.inputs("none"))
        for route in trace.values():
            assert ((route.weight_BTU != 0).sum(-1) == top).all()
        assert float(turnout.cost.trace_share(trace)) == pytest.approx(top)


@pytest.mark.parametrize("modulate", [False, True])
def test_copies_learn_apart(modulate: bool) -> None:
    host = BY_NAME["bert"]
    model = routed(host, top=2, modulate=modulate).train()
    inputs = host.inputs("none")
    model(**inputs)["logits"].square().sum().backward()
    (router,) = model.turnout.all_routers()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in router.gates.parameters())
    for bank in model.turnout.units.values():
        assert bank.out.grad is not None and bank.out.grad.abs().sum() > 0
        first, second = bank.out.grad[:2]
        assert not torch.equal(first, second)


def test_what_copies_cannot_be() -> None:
    bert = BY_NAME["bert"]
    for wrong, message in (
        ({"top": 5}, "top 5 is more than the 4 units"),
        ({"top": None}, "need a fixed number of them"),
        ({"keep": "threshold", "top": 2}, "top is that of noisy top-k"),
    ):
        with pytest.raises(UserError, match=message):
            routed(bert, **wrong)
    with pytest.raises(UserError, match="this host has experts"):
        turnout.install(BY_NAME["mixtral"].build(), [GATE])
