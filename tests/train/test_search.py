"""Routes that a search finds, and a policy that learns to take them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from tiny import stacked
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.execute.batches import inputs_of
from turnout.objectives import loss_per_sequence
from turnout.train.search import imitate, policy_of, search_routes, walk

PRICE = 0.3
ROWS: list[dict[str, Any]] = [
    {"input_ids": [3 + n, 9 + n, 4, 40 - n], "attention_mask": [1] * 4, "labels": n % 3}
    for n in range(12)
]


def policy(**more: Any) -> PreTrainedModel:
    return turnout.install(BY_NAME["bert"].build(), [{"kind": "policy", "curriculum": 0.0, **more}])


def rewards(model: PreTrainedModel, route: tuple[int, ...]) -> torch.Tensor:
    """Of one route for every row, by the routed model itself."""
    router = policy_of(model)
    decide = type(router).decide
    router.decide = lambda site, hidden, flow: turnout.Route(
        site, torch.full((len(hidden), 1, 1), float(route[site.layer]))
    )
    batch = stacked(ROWS)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch)["logits"]
    router.decide = decide.__get__(router)
    return (-loss_per_sequence(logits, labels)).exp() - PRICE * sum(route) / 3


def test_a_walk_is_what_the_routed_model_does() -> None:
    model = policy()
    router = policy_of(model)
    batch = stacked(ROWS)
    labels = batch["labels"]
    inputs = inputs_of(model, ROWS, stacked)
    for route in itertools.product((0, 1), repeat=3):
        with torch.no_grad():
            logits, states = walk(model, router, inputs, torch.tensor([route] * 12).float())
        found = (-loss_per_sequence(logits, labels)).exp() - PRICE * sum(route) / 3
        torch.testing.assert_close(found, rewards(model, route))
        assert states.shape == (12, 3, 32)


def test_the_search_finds_what_greedy_elimination_finds() -> None:
    model = policy()
    found = search_routes(model, ROWS, stacked, PRICE)
    every = {route: rewards(model, route) for route in itertools.product((0, 1), repeat=3)}
    best = torch.stack(list(every.values())).amax(0)
    assert (found.reward_N >= found.dense_N).all() and (found.reward_N > found.dense_N).any()
    assert (found.reward_N <= best + 1e-5).all()
    torch.testing.assert_close(found.dense_N, every[(1, 1, 1)])
    for row, route in enumerate(found.routes_NL):
        key = tuple(int(one) for one in route)
        torch.testing.assert_close(found.reward_N[row], every[key][row])
    # a block alone, and all but one, are among what elimination looks at
    for route in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)):
        assert (found.reward_N >= every[route] - 1e-5).all()


@pytest.mark.parametrize("decide", ["layer", "input"])
def test_a_policy_learns_the_routes(decide: str) -> None:
    model = policy(decide=decide)
    found = search_routes(model, ROWS, stacked, PRICE)
    assert 0.1 < float(found.routes_NL.mean()) < 0.95
    losses = imitate(policy_of(model), found, epochs=300, rate=0.01)
    assert losses[-1] < 0.3 * losses[0]
    batch = stacked(ROWS)
    batch.pop("labels")
    with torch.no_grad(), model.turnout.at(0.5), turnout.trace() as trace:
        model(**batch)
    taken = torch.stack([route.weight_BTU[:, 0, 0] for route in trace.values()], 1)
    assert float((taken == found.routes_NL).float().mean()) > 0.9


def test_what_cannot_be_searched_is_refused() -> None:
    gate = turnout.install(BY_NAME["bert"].build(), ["gate"])
    with pytest.raises(UserError, match="of kind policy"):
        search_routes(gate, ROWS, stacked, PRICE)
    with pytest.raises(UserError, match="at least one labelled row"):
        search_routes(policy(), [], stacked, PRICE)
    with pytest.raises(UserError, match="at site layer"):
        search_routes(policy(site="ffn"), ROWS, stacked, PRICE)
