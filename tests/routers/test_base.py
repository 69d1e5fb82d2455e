"""What every router has: the sites it covers, and its dial."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME
from pydantic import ValidationError

import turnout
from turnout.route import Site, UnitCost
from turnout.routers.base import Router, RouterConfig, masked_mean


def covered(**fields: object) -> list[int]:
    config = RouterConfig(kind="any", **fields)  # type: ignore[arg-type]
    sites = [Site(f"e.{n}", "layer", "encoder", n, 6, 1, UnitCost(1.0)) for n in range(6)]
    return [site.layer for site in sites if config.covers(site)]


@pytest.mark.parametrize(
    "fields, layers",
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"hold_first": 1, "hold_last": 2}, [1, 2, 3]),
        ({"layers": (0, -1)}, [0, 5]),
        ({"layers": (0, -1), "hold_last": 1}, [0]),
        ({"site": "ffn"}, []),
        ({"stack": "decoder"}, []),
        ({"stack": "encoder", "layers": (2,)}, [2]),
    ],
)
def test_covers(fields: dict[str, object], layers: list[int]) -> None:
    assert covered(**fields) == layers


def test_tokens_are_hidden_from_attention_only() -> None:
    assert not RouterConfig(kind="any", site="attention", visible=False).visible
    with pytest.raises(ValidationError, match="which site ffn does not touch"):
        RouterConfig(kind="any", site="ffn", visible=False)


def router() -> Router:
    return turnout.install(BY_NAME["bert"].build(), ["gate"]).turnout.all_routers()[0]


def test_an_uncalibrated_dial_is_one_minus_the_budget() -> None:
    assert [router().level(b) for b in (0.0, 0.25, 0.9)] == pytest.approx([1.0, 0.75, 0.1])
    assert router().level(1.0) < 0  # below every score: everything runs


def test_a_calibrated_dial_is_interpolated() -> None:
    one = router()
    one.levels = [(0.9, 0.2), (0.5, 0.4), (0.1, 0.9)]
    wanted = {1.0: -1.0, 0.95: 0.2, 0.9: 0.2, 0.7: 0.3, 0.5: 0.4, 0.3: 0.65, 0.1: 0.9, 0.0: 0.9}
    assert {b: one.level(b) for b in wanted} == pytest.approx(wanted)


def test_masked_mean_reads_real_tokens_only() -> None:
    state = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert masked_mean(state, mask).tolist() == [[2.0], [4.0]]
    assert masked_mean(state, None)[1].tolist() == [4.0]
    assert masked_mean(state, torch.zeros_like(mask)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("budget", [-0.1, 1.1, "half", None])
def test_a_wrong_budget_is_refused(budget: object) -> None:
    model = turnout.install(BY_NAME["bert"].build(), ["gate"])
    with pytest.raises(turnout.UserError, match="from 0 to 1"):
        model.turnout.budget = budget


def test_a_budget_holds_inside_its_scope() -> None:
    routing = turnout.install(BY_NAME["bert"].build(), ["gate"]).turnout
    with pytest.raises(RuntimeError), routing.at(0.25):
        assert routing.budget == 0.25
        raise RuntimeError
    assert routing.budget == 1.0
