"""The environment pays what the routers' own reward is, and an outside agent learns in it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import BY_NAME
from tiny import stacked

import turnout
from turnout import UserError

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from turnout.train.env import RoutingEnv, routes_of  # noqa: E402
from turnout.train.search import imitate, policy_of  # noqa: E402

ROWS = [
    {"input_ids": [3 + n, 9, 4, 40 - n], "attention_mask": [1] * 4, "labels": n % 3}
    for n in range(6)
]


def environment(**more: Any) -> RoutingEnv:
    spec = {"kind": "policy", "price": 0.3, "quality": "correct"}
    model = turnout.install(BY_NAME["bert"].build(), [spec])
    return RoutingEnv(model, ROWS, stacked, **more)


def test_it_is_an_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checker, about spaces without bounds
        check_env(environment(), skip_render_check=True)


@pytest.mark.parametrize("route", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
def test_the_reward_is_that_of_the_policy(route: tuple[int, ...]) -> None:
    env = environment()
    _, info = env.reset(options={"row": 4})
    assert info == {"row": 4}
    total = 0.0
    for action in route:
        _, reward, ended, _, info = env.step(action)
        total += reward
    assert ended and info["route"] == list(route)
    assert info["share"] == pytest.approx(sum(route) / 3)

    (router,) = env.model.turnout.all_routers()
    router.decide = lambda site, hidden, flow: turnout.Route(
        site, torch.full((len(hidden), 1, 1), float(route[site.layer]))
    )
    batch = stacked([ROWS[4]])
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = env.model(**batch)["logits"]
    flow = env.model.turnout.current_flow()
    assert total == pytest.approx(float(router.reward(flow, logits, labels)), rel=1e-4)


def test_rows_come_in_their_order_when_asked() -> None:
    env = environment(shuffle=False)
    assert [env.reset()[1]["row"] for _ in range(8)] == [0, 1, 2, 3, 4, 5, 0, 1]


def test_stable_baselines_learns_to_save_work() -> None:
    agents = pytest.importorskip("stable_baselines3")
    env = environment()
    env.price = 5.0  # nothing is worth that
    agent = agents.PPO("MlpPolicy", env, n_steps=96, batch_size=48, seed=0, learning_rate=3e-3)
    agent.learn(1500)
    spent = []
    for row in range(6):
        seen, _ = env.reset(options={"row": row})
        ended = False
        while not ended:
            action, _ = agent.predict(seen, deterministic=True)
            seen, _, ended, _, info = env.step(int(action))
        spent.append(info["share"])
    assert np.mean(spent) < 0.2


def test_an_agents_routes_come_back_as_a_policy() -> None:
    env = environment()
    seen_first = torch.stack([torch.from_numpy(env.reset(options={"row": n})[0]) for n in range(6)])
    middle = float(seen_first[:, 0].median())

    def act(seen: np.ndarray) -> int:  # rows go two ways in the first block, and skip the second
        depth = seen[-1]
        return int(seen[0] > middle) if depth == 0 else int(depth > 0.5)

    found = routes_of(env, act)
    assert found.routes_NL[:, 1:].tolist() == [[0.0, 1.0]] * 6
    assert found.routes_NL[:, 0].tolist() == (seen_first[:, 0] > middle).float().tolist()
    for row in range(6):
        env.reset(options={"row": row})
        paid = sum(env.step(int(action))[1] for action in found.routes_NL[row])
        assert float(found.reward_N[row]) == pytest.approx(paid)
    imitate(policy_of(env.model), found, epochs=300, rate=0.01)
    batch = stacked(ROWS)
    batch.pop("labels")
    with torch.no_grad(), env.model.turnout.at(0.5), turnout.trace() as trace:
        env.model(**batch)
    taken = torch.stack([route.weight_BTU[:, 0, 0] for route in trace.values()], 1)
    torch.testing.assert_close(taken, found.routes_NL)


def test_an_agent_must_say_an_action() -> None:
    with pytest.raises(UserError, match="the agent said 2; an action is 0"):
        routes_of(environment(), lambda seen: 2)


def test_what_has_no_decisions_is_refused() -> None:
    model = BY_NAME["bert"].build()
    with pytest.raises(UserError, match="one router at site layer"):
        RoutingEnv(model, ROWS, stacked)
    turnout.install(model, ["policy"])
    with pytest.raises(UserError, match="at least one labelled row"):
        RoutingEnv(model, [], stacked)
