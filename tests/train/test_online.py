"""Updates from feedback: they learn, they stay in bounds, and what harms is taken back."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor

import turnout
from turnout import UserError
from turnout.objectives.divergence import bernoulli_kl
from turnout.train.online import OnlinePolicy

INPUTS = {key: value.repeat(8, 1) for key, value in BY_NAME["bert"].inputs("none").items()}
INPUTS["input_ids"][:, 1] = torch.arange(3, 27)


def policy() -> Any:
    model: Any = turnout.install(BY_NAME["bert"].build(), [{"kind": "policy", "open": 0.5}])
    model.turnout.budget = 0.5
    return model


def run_share(model: Any) -> float:
    """Mean probability to run: the trusted reward of these tests."""
    with torch.no_grad(), turnout.trace() as trace:
        model(**INPUTS)
    scores = [route.score_BTU for route in trace.values()]
    return float(torch.stack([score.mean() for score in scores if score is not None]).mean())


def one_pass(model: Any, online: OnlinePolicy, sign: float = 1.0) -> dict[str, Any]:
    """Feedback that likes (or, with sign -1, dislikes) blocks that run."""
    with torch.no_grad(), online.explore(), turnout.trace() as trace:
        model(**INPUTS)
    reward = torch.stack([route.weight_BTU[:, 0, 0] for route in trace.values()], 1).mean(1)
    return online.update(trace, sign * reward)


def test_feedback_is_learned_from(tmp_path: Path) -> None:
    model = policy()
    before = run_share(model)
    online = OnlinePolicy(
        model, trust=0.2, guard=lambda: run_share(model), check_every=5, log=tmp_path / "log.jsonl"
    )
    torch.manual_seed(0)
    for _ in range(40):
        one_pass(model, online)
    assert run_share(model) > before + 0.1
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(entries) == 40 and [e for e in entries if "trusted" in e] == entries[4::5]


def test_the_policy_stays_in_its_trust_region() -> None:
    model = policy()
    (router,) = model.turnout.all_routers()
    states = torch.randn(50, 3, 32)

    def logits() -> Tensor:
        return torch.cat([router.logit(p, states[:, p]) for p in range(3)], 1).detach()

    first = logits()
    online = OnlinePolicy(model, rate=0.5, trust=0.01)
    torch.manual_seed(0)
    entries = [one_pass(model, online) for _ in range(20)]
    assert max(entry["divergence"] for entry in entries) <= 0.01 + 1e-6
    assert any(entry["halvings"] for entry in entries)
    assert float(bernoulli_kl(logits(), first)) < 0.1


def test_negated_feedback_is_rolled_back_and_then_ignored() -> None:
    model = policy()
    before = deepcopy(model.turnout.state_dict())
    online = OnlinePolicy(
        model, trust=0.5, guard=lambda: run_share(model), check_every=5, margin=0.01, strikes=2
    )
    torch.manual_seed(0)
    entries = [one_pass(model, online, sign=-1.0) for _ in range(15)]
    checks = [entry for entry in entries if "trusted" in entry]
    assert [check["rolled_back"] for check in checks] == [True, True]
    assert online.stopped and entries[-1]["event"] == "ignored"
    after = model.turnout.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_slow_fall_within_the_margin_is_stopped_too() -> None:
    model = policy()
    trusted = [1.0]
    online = OnlinePolicy(
        model, guard=lambda: trusted[-1], check_every=1, margin=0.01, strikes=3, trust=1.0
    )
    torch.manual_seed(0)
    for reward in (0.994, 0.988, 0.994, 0.988, 0.994, 0.988):
        trusted.append(reward)
        one_pass(model, online)
    assert online.stopped


def test_feedback_that_makes_no_sense_changes_nothing() -> None:
    model = policy()
    before = deepcopy(model.turnout.state_dict())
    online = OnlinePolicy(model)
    with torch.no_grad(), online.explore(), turnout.trace() as trace:
        model(**INPUTS)
    for reward, message in (
        (torch.full((24,), torch.nan), "NaN or infinite"),
        (torch.arange(24) * 1e25, "gradient that is not finite"),
        (torch.zeros(3), r"one a sequence, \(24,\); got \(3,\)"),
    ):
        with pytest.raises(UserError, match=message):
            online.update(trace, reward)
    trace.memory[("encoder.1.layer", "state")] *= torch.nan
    with pytest.raises(UserError, match="states hold NaN"):
        online.update(trace, torch.ones(24))
    with torch.no_grad(), turnout.trace() as trace:
        model(**INPUTS)
    with pytest.raises(UserError, match=r"not drawn: make the pass inside of explore"):
        online.update(trace, torch.zeros(24))
    with pytest.raises(UserError, match=r"no route of encoder\.0\.layer"):
        online.update(turnout.Trace(), torch.zeros(24))
    after = model.turnout.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    entry = one_pass(model, online)  # nothing of it stayed behind in the optimizer
    assert entry["divergence"] > 0 and entry["halvings"] < 8
    with pytest.raises(UserError, match="of kind policy"):
        OnlinePolicy(turnout.install(BY_NAME["bert"].build(), ["gate"]))


@pytest.mark.parametrize("reward", [[1] * 24, [True] * 24, torch.ones(24, dtype=torch.long)])
def test_rewards_may_be_any_numbers(reward: Any, tmp_path: Path) -> None:
    model = policy()
    online = OnlinePolicy(model, log=tmp_path / "new" / "log.jsonl")
    with torch.no_grad(), online.explore(), turnout.trace() as trace:
        model(**INPUTS)
    assert online.update(trace, reward)["reward"] == 1.0
    assert (tmp_path / "new" / "log.jsonl").is_file()


def test_a_guard_that_knows_nothing_is_told() -> None:
    model = policy()
    with pytest.raises(UserError, match="the guard gave nan"):
        OnlinePolicy(model, guard=lambda: float("nan"))
    trusted = [1.0]
    online = OnlinePolicy(model, guard=lambda: trusted[-1], check_every=1)
    before = deepcopy(model.turnout.state_dict())
    trusted.append(float("nan"))
    with pytest.raises(UserError, match="the update was left out"):
        one_pass(model, online)
    after = model.turnout.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) and online.updates == 0


@pytest.mark.parametrize("name", ["check_every", "strikes", "trust", "rate", "margin"])
def test_settings_that_make_no_sense(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be"):
        OnlinePolicy(policy(), **{name: -1})


def test_without_a_guard_learning_goes_on() -> None:
    """The trust region is that of a window of updates, not of the whole life."""
    model = policy()
    online = OnlinePolicy(model, trust=0.01, check_every=5)
    before = run_share(model)
    torch.manual_seed(0)
    for _ in range(60):
        one_pass(model, online)
    assert run_share(model) > before + 0.15


def test_divergence_is_zero_only_for_equal_policies() -> None:
    one, other = torch.tensor([0.5, -2.0]), torch.tensor([0.5, 1.0])
    assert float(bernoulli_kl(one, one)) == 0.0 and float(bernoulli_kl(one, other)) > 0
    p, q = one.sigmoid(), other.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(bernoulli_kl(one, other), expected)


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    def begun() -> tuple[Any, OnlinePolicy]:
        model = policy()
        return model, OnlinePolicy(model, trust=0.2, guard=lambda: run_share(model), check_every=5)

    model, online = begun()
    torch.manual_seed(0)
    for _ in range(7):
        one_pass(model, online)
    online.fallen = 2
    online.save(tmp_path / "online")
    again_model, again = begun()
    again.resume(tmp_path / "online")
    for each_model, each in ((model, online), (again_model, again)):
        torch.manual_seed(1)
        for _ in range(8):
            one_pass(each_model, each)
    assert (again.updates, again.fallen, again.stopped) == (15, online.fallen, online.stopped)
    pairs = zip(model.turnout.parameters(), again_model.turnout.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)

    small: Any = turnout.install(BY_NAME["bert"].build(), [{"kind": "policy", "hidden": 8}])
    small.turnout.budget = 0.5
    other = OnlinePolicy(small)
    with pytest.raises(UserError, match="of another policy"):
        other.resume(tmp_path / "online")
    (tmp_path / "online" / "online.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        again.resume(tmp_path / "online")


def test_a_guard_that_comes_later_judges_the_best_policy_first(tmp_path: Path) -> None:
    model = policy()
    online = OnlinePolicy(model, trust=1.0, rate=0.1)
    earned = run_share(model)
    torch.manual_seed(0)
    for _ in range(3):
        one_pass(model, online, sign=-1.0)
    online.save(tmp_path / "online")
    now = run_share(model)
    assert now < earned
    again_model = policy()
    again = OnlinePolicy(again_model, guard=lambda: run_share(again_model), check_every=1)
    again.resume(tmp_path / "online")
    assert run_share(again_model) == pytest.approx(now)
    entry = one_pass(again_model, again, sign=-1.0)
    assert entry["rolled_back"] and run_share(again_model) == pytest.approx(earned)


def test_at_a_budget_of_1_there_is_nothing_to_learn() -> None:
    model = policy()
    model.turnout.budget = 1.0
    with pytest.raises(UserError, match="everything runs, whatever a policy says"):
        OnlinePolicy(model)


def test_a_rollback_is_to_the_best_policy() -> None:
    model = policy()
    online = OnlinePolicy(model)
    first = deepcopy(model.turnout.state_dict())
    torch.manual_seed(0)
    one_pass(model, online)
    now = model.turnout.state_dict()
    assert any(not torch.equal(first[key], now[key]) for key in first)
    online.rollback()
    assert all(torch.equal(first[key], value) for key, value in model.turnout.state_dict().items())


def test_a_policy_that_is_sure_explores_still() -> None:
    sure = [{"kind": "policy", "open": 30.0}]
    model: Any = turnout.install(BY_NAME["bert"].build(), sure).eval()
    model.turnout.budget = 0.5
    ran = []
    for least in (0.0, 0.3):
        online = OnlinePolicy(model, least=least)
        with torch.no_grad(), online.explore(), turnout.trace() as trace:
            model(**INPUTS)
        ran.append(float(torch.stack([r.weight_BTU.mean() for r in trace.values()]).mean()))
    assert ran[0] == 1.0 and 0.5 < ran[1] < 0.9
    with torch.no_grad(), turnout.trace() as trace:
        model(**INPUTS)
    assert all(bool((route.weight_BTU == 1).all()) for route in trace.values())
    with pytest.raises(UserError, match="at most a half"):
        OnlinePolicy(model, least=0.6)
