"""Budgets with a bound on their risk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import BY_NAME
from scipy.stats import binom

import turnout
from turnout.errors import UserError
from turnout.train.risk import hoeffding_bentkus


def rows(count: int = 60) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (count, 6), generator=generator)
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 6} for row in ids]


def collate(some: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in some]) for key in some[0]}


def model(name: str = "llama") -> Any:
    host: Any = BY_NAME[name].build()
    turnout.install(host, {"kind": "random-skip", "granularity": "token", "rate": 0.0})
    host.turnout.seed = 1
    return host


def test_stops_at_the_first_budget_that_fails() -> None:
    host = model()
    found = turnout.bound_risk(host, rows(), collate, epsilon=0.6, budgets=[0.5, 0.97, 0.9, 0.2])
    assert [each.budget for each in found.tested] == [0.97, 0.9, 0.5, 0.2][: len(found.tested)]
    *passed, last = found.tested
    assert all(each.p_value <= 0.05 for each in passed) and last.p_value > 0.05
    assert found.budget == passed[-1].budget and found.rows == 60
    risks = [each.risk for each in found.tested]
    assert risks == sorted(risks) and host.turnout.budget == 1.0
    none = turnout.bound_risk(host, rows(), collate, epsilon=0.001)
    assert none.budget == 1.0 and len(none.tested) == 1


def test_labels_of_texts() -> None:
    found = turnout.bound_risk(model("bert"), rows(), collate, epsilon=0.5, budgets=[0.95])
    assert 0 <= found.tested[0].risk * 60 == round(found.tested[0].risk * 60)


def test_bound_is_valid_and_useful() -> None:
    """Over draws whose true risk is epsilon, at most delta of the p values are below delta."""
    rng, epsilon, count = np.random.default_rng(0), 0.1, 200
    means = rng.binomial(count, epsilon, 4000) / count
    p_values = np.array([hoeffding_bentkus(float(mean), count, epsilon) for mean in means])
    assert (p_values <= 0.1).mean() <= 0.1
    low = hoeffding_bentkus(0.02, count, epsilon)
    assert low < 0.01 and low >= binom.cdf(4, count, epsilon)
    assert hoeffding_bentkus(0.0, count, epsilon) == pytest.approx(0.9**count)
    assert hoeffding_bentkus(0.2, count, epsilon) == 1.0


def test_bad_input() -> None:
    with pytest.raises(UserError, match="needs a routed model"):
        turnout.bound_risk(BY_NAME["llama"].build(), rows(), collate, epsilon=0.1)
    with pytest.raises(UserError, match="at least one row"):
        turnout.bound_risk(model(), [], collate, epsilon=0.1)
    with pytest.raises(UserError, match="epsilon must lie between 0 and 1"):
        turnout.bound_risk(model(), rows(), collate, epsilon=1.5)
    with pytest.raises(UserError, match="budgets must be"):
        turnout.bound_risk(model(), rows(), collate, epsilon=0.1, budgets=[1.0])
    with pytest.raises(UserError, match="from 0 to 1"):
        turnout.bound_risk(
            model(), rows(), collate, epsilon=0.1, risk=lambda a, b, m: torch.full((len(a),), 2.0)
        )
