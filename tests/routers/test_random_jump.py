"""Random jumps between layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from transformers import PreTrainedModel

import turnout
from turnout.routers.random_jump import RandomJumpRouter


def routed(**fields: Any) -> tuple[PreTrainedModel, RandomJumpRouter]:
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "random-jump", **fields}])
    return model, model.turnout.all_routers()[0]


def test_targets_lie_ahead_and_add_up() -> None:
    for fields in ({}, {"distribution": "geometric"}, {"distribution": "learned"}):
        _, router = routed(**fields)
        chance = router.targets(3).exp()
        torch.testing.assert_close(chance.sum(-1), torch.ones(3))
        assert torch.equal(chance > 0, torch.ones(3, 4).triu(1) > 0)


def test_geometric_targets_decay() -> None:
    _, router = routed(distribution="geometric", decay=0.5)
    torch.testing.assert_close(router.targets(3).exp()[0, 1:], torch.tensor([4.0, 2.0, 1.0]) / 7)


def test_share_by_hand() -> None:
    """Two layers: the second one runs unless the first jumps past it (one target of two)."""
    _, router = routed()
    assert router.share(2, 1.0) == pytest.approx(0.75)
    assert router.share(2, 0.5) == pytest.approx((1 + 0.75) / 2)
    assert router.share(2, 0.0) == 1.0


def test_the_probability_spends_the_budget() -> None:
    _, router = routed()
    for budget in (0.95, 0.8, 0.6):
        assert router.share(12, router.probability(12, budget)) == pytest.approx(budget, abs=1e-4)
    with pytest.warns(UserWarning, match=r"at least 0\.26 of its 12 layers"):
        assert router.probability(12, 0.1) == 1.0  # as low as it can


def test_the_first_layer_runs_and_no_jump_is_the_host() -> None:
    model, _ = routed(p=1.0)
    with torch.no_grad(), turnout.trace() as trace:
        model(**BY_NAME["bert"].inputs())
    assert (trace["encoder.0.layer"].weight_BTU == 1).all()
    model, _ = routed(p=0.0)
    with torch.no_grad(), turnout.trace() as trace:
        model(**BY_NAME["bert"].inputs())
    assert all((route.weight_BTU == 1).all() for route in trace.values())


@pytest.mark.parametrize("hold", [0, 1, 2])
def test_a_jump_may_leave_the_last_held_layer(hold: int) -> None:
    """With p = 1 and targets all alike, layer n is reached from each earlier one on the path."""
    inputs = {key: value.repeat(200, 1) for key, value in BY_NAME["bert"].inputs("none").items()}
    inputs["input_ids"][:, 1:3] = torch.randint(3, 60, (600, 2))
    model, router = routed(p=1.0, hold_first=hold)
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs)
    ran = {key: float(route.weight_BTU.mean()) for key, route in trace.items()}
    # three layers; the first that may be jumped over is the second, or the one after the held ones
    expected = {0: [1.0, 1 / 3, 0.5], 1: [1 / 3, 0.5], 2: [0.5]}[hold]
    assert list(ran.values()) == pytest.approx(expected, abs=0.07)
    lead = int(hold > 0)
    share = router.share(3 - max(0, hold - 1), 1.0, lead)
    assert share == pytest.approx(sum(expected) / len(expected))


def test_no_jumps_in_inference_when_told_so() -> None:
    model, _ = routed(p=1.0, inference=False)
    for budget, share in ((1.0, 1.0), (0.5, None)):
        with torch.no_grad(), model.turnout.at(budget), turnout.trace() as trace:
            model(**BY_NAME["bert"].inputs())
        mean = torch.cat([route.weight_BTU for route in trace.values()]).mean()
        assert (float(mean) == 1.0) == (share == 1.0)


def test_the_score_function_gradient_favours_what_was_rewarded() -> None:
    model, router = routed(p=1.0, distribution="learned")
    model.train()
    for _ in range(20):
        with turnout.trace() as trace:
            model(**BY_NAME["bert"].inputs())
        ran_B = torch.stack([r.weight_BTU.flatten() for r in trace.values()]).sum(0)
        log_prob_B = torch.stack([r.log_prob_BT.flatten() for r in trace.values()]).sum(0)
        (-(ran_B - 2.0) * log_prob_B).sum().backward()  # the reward: many layers
    before = router.share(3, 1.0)
    with torch.no_grad():
        router.jump -= 0.1 * router.jump.grad
    assert router.share(3, 1.0) > before
