"""Prices in seconds are those of this machine."""

from __future__ import annotations

import time
from typing import Any

import datasets
import pytest
import torch
from hosts_table import BY_NAME
from tiny import stacked

import turnout
from turnout import UserError
from turnout.routers.reward import shares
from turnout.train.prices import measured_seconds, price_shares

HOST = BY_NAME["bert"]


def slow(seconds: float) -> Any:
    def hook(*_: Any) -> None:
        time.sleep(seconds)

    return hook


@pytest.mark.parametrize("kind", ["policy", "q-learning"])
def test_a_slow_block_is_dear(kind: str) -> None:
    model = HOST.build()
    blocks = model.base_model.encoder.layer
    turnout.install(model, [{"kind": kind, "cost": "seconds", "price": 1.0}])
    (router,) = model.turnout.all_routers()
    blocks[1].attention.self.register_forward_pre_hook(slow(0.05))
    found = measured_seconds(model, router.sites, HOST.inputs("none"))
    assert found[1] == max(found) and found[1] > 5 * found[0]
    router.seconds.copy_(found)
    decide = router.decide
    router.decide = lambda site, hidden, flow: turnout.Route(
        site, torch.full((len(hidden), 1, 1), float(site.layer != 1))
    )
    with torch.no_grad():
        model(**HOST.inputs("none"))
    router.decide = decide
    share = shares(model.turnout.current_flow(), router.sites, router.seconds).sum(1)
    assert (share < 0.3).all()  # two of three blocks ran, but the dear one did not
    flops = shares(model.turnout.current_flow(), router.sites, None).sum(1)
    torch.testing.assert_close(flops, torch.full((3,), 2 / 3))


def test_measuring_leaves_the_router_as_it_was() -> None:
    model = turnout.install(HOST.build(), [{"kind": "policy", "cost": "seconds"}]).train()
    (router,) = model.turnout.all_routers()
    measured_seconds(model, router.sites, HOST.inputs("none"))
    assert model.training and model.turnout.decide.__func__ is type(model.turnout).decide
    model.eval()
    with torch.no_grad(), turnout.trace() as trace:
        model(**HOST.inputs("none"))
    assert all(route.score_BTU is not None for route in trace.values())


def test_the_prices_are_saved(tmp_path: Any) -> None:
    model = turnout.install(HOST.build(), [{"kind": "policy", "cost": "seconds"}])
    model.turnout.all_routers()[0].seconds.copy_(torch.tensor([0.1, 0.2, 0.3]))
    model.save_pretrained(tmp_path)
    (router,) = turnout.load(tmp_path).turnout.all_routers()
    assert router.seconds.tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("kind", ["policy", "q-learning"])
def test_seconds_that_nobody_measured_are_no_price(kind: str) -> None:
    model = turnout.install(HOST.build(), [{"kind": kind, "cost": "seconds"}]).train()
    (router,) = model.turnout.all_routers()
    inputs, labels = HOST.inputs("none"), torch.tensor([0, 1, 2])
    logits = model(**inputs)["logits"]
    with pytest.raises(UserError, match=r"not measured: call turnout\.prepare"):
        router.losses(model.turnout.current_flow(), logits, labels, None)
    with pytest.raises(UserError, match="not measured"):
        price_shares(router)
    each = [{key: value[n].tolist() for key, value in inputs.items()} for n in range(3)]
    turnout.prepare(model, datasets.Dataset.from_list(each), stacked, say=str)
    assert bool((router.seconds > 0).all())
    logits = model(**inputs)["logits"]
    assert "policy" in router.losses(model.turnout.current_flow(), logits, labels, None)


@pytest.mark.parametrize("kind", ["policy", "q-learning"])
def test_searches_and_environments_pay_the_same_prices(kind: str) -> None:
    by_flops = turnout.install(HOST.build(), [{"kind": kind}]).turnout.all_routers()[0]
    torch.testing.assert_close(price_shares(by_flops), torch.full((3,), 1 / 3))
    spec = {"kind": kind, "cost": "seconds"}
    router = turnout.install(HOST.build(), [spec]).turnout.all_routers()[0]
    router.seconds.copy_(torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(price_shares(router), torch.tensor([0.125, 0.25, 0.625]))
