"""Gates."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.cost import trace_share

HOST = BY_NAME["bert"]


def test_padding_has_no_part_in_the_z_loss() -> None:
    spec = {"kind": "gate", "granularity": "token", "temperature": 0.0}
    model = turnout.install(HOST.build(), [spec]).train()
    (router,) = model.turnout.all_routers()
    for parameter in model.turnout.parameters():
        torch.nn.init.normal_(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs, found = HOST.inputs(), []
    for pad in (0, 20):
        longer = {key: torch.nn.functional.pad(value, (0, pad)) for key, value in inputs.items()}
        logits = model(**longer)["logits"]
        losses = router.losses(model.turnout.current_flow(), logits, None, None)
        found.append(float(losses["z"].detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


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
    assert one.all_routers()[0].bias.shape == (3, 1)


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


EXPERTS = {"kind": "gate", "site": "expert", "experts": 4, "granularity": "token"}


def kept(spec: dict, budget: float, padding: str = "none") -> torch.Tensor:
    """Weights at one site, (B, T, U), of gates that tell tokens apart."""
    model = turnout.install(HOST.build(), [spec])
    generator = torch.Generator().manual_seed(0)
    for parameter in model.turnout.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    with torch.no_grad(), turnout.trace() as trace, model.turnout.at(budget):
        model(**HOST.inputs(padding))
    return trace["encoder.1.expert"].weight_BTU


def test_top_k_keeps_as_many_units_for_each_token() -> None:
    count = kept({**EXPERTS, "keep": "top-k"}, 0.5).sum(-1)
    assert (count == 2).all()


def test_experts_choose_as_many_tokens_each() -> None:
    weight = kept({**EXPERTS, "keep": "expert-choice"}, 0.5)
    count = weight.sum(1)
    assert (count == count[0, 0]).all() and count[0, 0] == (weight.shape[1] + 1) // 2
    assert (weight.sum(-1) != 2).any()


def test_capacity_limits_the_load_and_without_it_nothing_is_dropped() -> None:
    free, capped = (kept({**EXPERTS, "open": 0.0, **more}, 0.5) for more in ({}, {"capacity": 1.0}))
    room = free.sum(1).mean(-1).ceil()
    assert (capped.sum(1).amax(-1) <= room).all() and (free.sum(1).amax(-1) > room).any()
    assert not ((capped > 0) & (free == 0)).any()


def test_a_modulated_unit_is_scaled_by_its_score() -> None:
    weight = kept({"kind": "gate", "site": "expert", "experts": 4, "modulate": True}, 0.6)
    ran = weight[weight > 0]
    assert ((ran > 0.4) & (ran < 1)).all() and ran.unique().numel() > 2


def test_a_recurrent_gate_remembers_the_layers_before() -> None:
    spec = {"kind": "gate", "shape": "recurrent", "hidden": 8}
    model = turnout.install(HOST.build(), [spec]).train()
    for parameter in model.turnout.parameters():
        parameter.data += 0.3
    model(**HOST.inputs())
    memory = model.turnout.current_flow().memory
    states = [memory[(site.key, "depth")] for site in model.turnout.sites]
    assert states[0].shape == (3, 1, 8)
    states[2].sum().backward()
    cell = model.turnout.all_routers()[0].cell
    assert cell.recur.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"keep": "expert-choice"}, "set granularity: token"),
        ({"capacity": 1.5}, "set granularity: token"),
        ({"noise": True}, "set keep: top-k"),
        ({"keep": "top-k"}, "has one: use sites head or expert"),
    ],
)
def test_gates_that_make_no_sense(spec: dict, message: str) -> None:
    with pytest.raises(turnout.UserError, match=message):
        turnout.install(HOST.build(), [{"kind": "gate", **spec}])


def test_decoders_do_not_look_ahead() -> None:
    for more in ({"keep": "expert-choice"}, {"capacity": 1.5}):
        with pytest.raises(turnout.UserError, match="later tokens would push out earlier ones"):
            turnout.install(BY_NAME["llama"].build(), [{**EXPERTS, **more}])


def test_noise_changes_which_units_training_ranks_first() -> None:
    ranked = []
    for noise in (False, True):
        spec = {**EXPERTS, "keep": "top-k", "top": 1, "noise": noise}
        model = turnout.install(HOST.build(), [spec]).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        seen = []
        for seed in range(8):
            model.turnout.seed = seed
            with torch.no_grad(), turnout.trace() as trace:
                model(**HOST.inputs("none"))
            seen.append(trace["encoder.0.expert"].weight_BTU.argmax(-1))
        ranked.append(torch.stack(seen))
    assert (ranked[0] == ranked[0][0]).all()  # the same state has the same best expert
    assert (ranked[1] != ranked[1][0]).float().mean() > 0.2
