"""Gates."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.cost import trace_share

HOST = BY_NAME["bert"]


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_without_noise_a_gate_closes_in_training_below_one_half(granularity: str) -> None:
    inputs, shares = HOST.inputs(), []
    for open_ in (-0.1, 0.1):
        spec = {"kind": "gate", "temperature": 0.0, "open": open_, "granularity": granularity}
        model = turnout.install(HOST.build(), [spec]).train()
        with turnout.trace() as trace:
            model(**inputs)
        shares.append(float(turnout.trace_share(trace).detach()))
        torch.stack([route.weight_BTU.sum() for route in trace.values()]).sum().backward()
        assert model.turnout.all_routers()[0].bias.grad.abs().sum() > 0
    assert shares[0] < 0.3 and shares[1] == 1.0


def test_gates_start_open() -> None:
    model = turnout.install(HOST.build(), [{"kind": "gate", "open": 2.0}])
    with torch.no_grad(), turnout.trace() as trace:
        model(**HOST.inputs())
    for route in trace.values():
        assert route.score_BTU is not None
        torch.testing.assert_close(route.score_BTU, torch.full((3, 1, 1), 2.0).sigmoid())
        assert (route.weight_BTU == 1).all()


def test_training_samples_with_the_probability_of_the_score() -> None:
    model = turnout.install(
        HOST.build(), [{"kind": "gate", "open": 0.4, "granularity": "token", "temperature": 2.0}]
    ).train()
    ran = []
    for _ in range(30):
        with torch.no_grad(), turnout.trace() as trace:
            model(**HOST.inputs("none"))
        ran += [route.weight_BTU.mean() for route in trace.values()]
    wanted = float(torch.tensor(0.4 / 2.0).sigmoid())
    assert float(torch.stack(ran).mean()) == pytest.approx(wanted, abs=0.03)


def test_a_shared_gate_has_one_map_and_a_bias_a_layer() -> None:
    one = turnout.install(HOST.build(), [{"kind": "gate", "shared": True}]).turnout
    many = turnout.install(HOST.build(), [{"kind": "gate"}]).turnout
    assert len(one.all_routers()[0].gates) == 1 and len(many.all_routers()[0].gates) == 3
    assert one.all_routers()[0].bias.shape == (3,)


def test_less_work_in_the_loss_closes_gates() -> None:
    model = turnout.install(HOST.build(), [{"kind": "gate", "open": 1.0}]).train()
    optimizer = torch.optim.SGD(model.turnout.parameters(), lr=20.0)
    for _ in range(30):
        optimizer.zero_grad()
        with turnout.trace() as trace:
            model(**HOST.inputs())
        trace_share(trace).backward()
        optimizer.step()
    scores = torch.cat([r.score_BTU.flatten() for r in trace.values() if r.score_BTU is not None])
    assert scores.max() < torch.tensor(1.0).sigmoid()
