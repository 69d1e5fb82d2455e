"""Policy gradient and Q-learning: they find the routes that are rewarded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout import UserError
from turnout.cost import trace_dense_flops, trace_flops
from turnout.routers.reward import quality

HOST = BY_NAME["bert"]
SPECS: dict[str, dict[str, Any]] = {
    "policy": {"kind": "policy", "curriculum": 0.0, "entropy": 0.0},
    "policy-input": {"kind": "policy", "decide": "input", "curriculum": 0.0, "entropy": 0.0},
    "q-learning": {"kind": "q-learning", "replay": 128, "batch": 64},
}


def learn(model: Any, wanted: list[float] | None, steps: int = 150) -> list[float]:
    """Train with an answer that is right when the wanted blocks ran (None: always); returns the
    mean score of each block."""
    model.train()
    (router,) = model.turnout.all_routers()
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    torch.manual_seed(0)
    inputs = {key: value.repeat(8, 1) for key, value in HOST.inputs("none").items()}
    inputs["input_ids"][:, 1] = torch.arange(3, 27)  # copies of a text would take the same route
    labels = torch.zeros(24, dtype=torch.long)
    for step in range(steps):
        router.done = step / steps
        with turnout.trace() as trace:
            model(**inputs)
        ran = torch.stack([route.weight_BTU[:, 0, 0] for route in trace.values()], 1)
        right = torch.ones(24) if wanted is None else (ran == torch.tensor(wanted)).all(1).float()
        logits = torch.stack([8 * right, 8 * (1 - right)], 1)
        loss = router.losses(model.turnout.current_flow(), logits, labels, None)["policy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = [route.score_BTU for route in trace.values()]
    return [float(score.detach().mean()) for score in scores if score is not None]


@pytest.mark.parametrize("name", SPECS)
def test_the_rewarded_route_is_learned(name: str) -> None:
    model = turnout.install(HOST.build(), [{**SPECS[name], "price": 0.0}])
    scores = learn(model, [1.0, 0.0, 1.0])
    assert scores[0] > 0.6 and scores[1] < 0.4 and scores[2] > 0.6, scores


@pytest.mark.parametrize("name", SPECS)
def test_what_costs_and_does_not_help_is_skipped(name: str) -> None:
    model = turnout.install(HOST.build(), [{**SPECS[name], "price": 1.0}])
    assert max(learn(model, None)) < 0.5


def test_the_last_layers_decide_first() -> None:
    model = turnout.install(HOST.build(), [{"kind": "policy", "curriculum": 0.5}])
    (router,) = model.turnout.all_routers()
    said = []
    for router.done in (0.0, 0.25, 0.5, 1.0):
        said.append([router.decides(place) for place in range(3)])
    assert said == [[False, False, True], [False, True, True], [True] * 3, [True] * 3]


def test_the_reward_is_quality_less_the_price_of_the_work() -> None:
    model = turnout.install(HOST.build(), [{"kind": "policy", "price": 0.4, "curriculum": 0.0}])
    model.train()
    (router,) = model.turnout.all_routers()
    with turnout.trace() as trace:
        model(**HOST.inputs("none"))
    share = torch.stack([route.weight_BTU[:, 0, 0] for route in trace.values()]).mean(0)
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 2])
    found = router.reward(model.turnout.current_flow(), logits, labels)
    right = logits.softmax(-1)[torch.arange(3), labels]
    torch.testing.assert_close(found, right - 0.4 * share)


def test_q_learning_remembers_the_latest_and_its_target_follows() -> None:
    model = turnout.install(HOST.build(), [{"kind": "q-learning", "replay": 4, "batch": 4}])
    model.train()
    (router,) = model.turnout.all_routers()
    for turn in range(3):
        model(**HOST.inputs("none"))
        logits = torch.full((3, 2), float(turn))
        router.losses(model.turnout.current_flow(), logits, torch.zeros(3).long(), None)
    assert int(router.seen) == 9 and (router.qualities == 0.5).all()
    before = router.get_buffer("target_bias").clone()
    with torch.no_grad():
        router.bias += 1.0
    router.losses(model.turnout.current_flow(), logits, torch.zeros(3).long(), None)
    torch.testing.assert_close(router.get_buffer("target_bias"), before + 0.05)


def test_q_learning_keeps_the_end_of_a_batch_that_is_larger_than_its_memory() -> None:
    model = turnout.install(HOST.build(), [{"kind": "q-learning", "replay": 2, "batch": 2}])
    model.train()
    (router,) = model.turnout.all_routers()
    model(**HOST.inputs("none"))
    flow, labels = model.turnout.current_flow(), torch.tensor([0, 1, 1])
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    router.losses(flow, logits, labels, None)
    kept = quality(logits, labels, router.config.quality)[1:]
    torch.testing.assert_close(router.qualities[router.seen % 2], kept[0])
    torch.testing.assert_close(router.qualities.sum(), kept.sum())
    assert int(router.seen) == 2
    for place, site in enumerate(router.sites):
        state = torch.nn.functional.layer_norm(flow.memory[(site.key, "state")], (32,))
        torch.testing.assert_close(router.states[:, place], state[1:].half())


def test_q_learning_needs_one_unit_a_site() -> None:
    with pytest.raises(UserError, match="use 'policy' there"):
        turnout.install(HOST.build(), [{"kind": "q-learning", "site": "head"}])


def test_a_layer_is_paid_for_with_its_sub_blocks() -> None:
    """Other routers decide about all that a layer holds: its own cost alone would be nothing."""
    gates = [{"kind": "gate", "site": site} for site in ("attention", "ffn")]
    model = turnout.install(HOST.build(), [{"kind": "policy", "price": 0.4}, *gates]).eval()
    router = model.turnout.all_routers()[0]
    inputs, labels = HOST.inputs("none"), torch.tensor([0, 1, 2])
    with torch.no_grad():
        logits = model(**inputs)["logits"]
        whole = router.reward(model.turnout.current_flow(), logits, labels)
        right = logits.softmax(-1)[torch.arange(3), labels]
        torch.testing.assert_close(whole, right - 0.4)
        router.bias.fill_(-9.0)
        model.turnout.budget = 0.5
        logits = model(**inputs)["logits"]
        right = logits.softmax(-1)[torch.arange(3), labels]
        torch.testing.assert_close(
            router.reward(model.turnout.current_flow(), logits, labels), right
        )


def test_what_a_skipped_attention_still_costs_is_paid() -> None:
    model = turnout.install(HOST.build(), [{"kind": "policy", "site": "attention"}]).eval()
    (router,) = model.turnout.all_routers()
    router.bias.data.fill_(-9.0)
    model.turnout.budget = 0.5
    with torch.no_grad(), turnout.trace() as trace:
        logits = model(**HOST.inputs("none"))["logits"]
    spent = trace_flops(trace) / trace_dense_flops(trace)
    assert 0.1 < spent < 0.9
    labels = torch.tensor([0, 1, 2])
    reward = router.reward(model.turnout.current_flow(), logits, labels)
    right = logits.softmax(-1)[torch.arange(3), labels]
    torch.testing.assert_close(reward, right - router.config.price * spent)


@pytest.mark.parametrize("kind", ["policy", "q-learning", "gate"])
def test_routers_of_one_block_explore_apart(kind: str) -> None:
    specs = [{"kind": kind, "site": site} for site in ("attention", "ffn")]
    for spec in specs:
        spec.update(
            {"policy": {"open": 0.0, "curriculum": 0.0}, "gate": {"open": 0.0}}.get(kind, {})
        )
    model = turnout.install(HOST.build(), specs).train()
    inputs = {key: value.repeat(20, 1) for key, value in HOST.inputs("none").items()}
    inputs["input_ids"][:, 1:3] = torch.cartesian_prod(torch.arange(3, 23), torch.arange(3, 6))
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs)
    ran = {key: route.active_BT[:, 0].float() for key, route in trace.items()}
    for layer in range(3):
        pair = [ran[f"encoder.{layer}.{site}"] for site in ("attention", "ffn")]
        assert abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.5


@pytest.mark.parametrize("name", SPECS)
def test_logits_that_are_not_finite_spoil_nothing(name: str) -> None:
    model = turnout.install(HOST.build(), [SPECS[name]]).train()
    model(**HOST.inputs("none"))
    (router,) = model.turnout.all_routers()
    before = {key: value.clone() for key, value in router.state_dict().items()}
    with pytest.raises(UserError, match="logits are NaN"):
        logits = torch.full((3, 2), torch.nan)
        router.losses(model.turnout.current_flow(), logits, torch.zeros(3).long(), None)
    assert all(torch.equal(before[key], value) for key, value in router.state_dict().items())


def test_the_bonus_is_for_undecided_policies() -> None:
    """With rewards all alike, only the entropy bonus moves the probabilities: towards a half."""
    model = turnout.install(
        HOST.build(), [{"kind": "policy", "entropy": 1.0, "price": 0.0, "curriculum": 0.0}]
    )
    assert all(abs(score - 0.5) < 0.1 for score in learn(model, None))


def test_exploring_ends_halfway() -> None:
    model = turnout.install(
        HOST.build(), [{"kind": "q-learning", "explore": 0.8, "explore_last": 0.2}]
    )
    (router,) = model.turnout.all_routers()
    found = []
    for router.done in (0.0, 0.25, 0.5, 1.0):
        found.append(router.epsilon)
    assert found == pytest.approx([0.8, 0.5, 0.2, 0.2])
