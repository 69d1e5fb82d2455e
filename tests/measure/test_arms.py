"""The arms of a measurement: names, dials, and random skipping at the same work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts_table import BY_NAME, LAYERS

import turnout
from turnout.cost import trace_dense_flops, trace_flops
from turnout.measure.arms import (
    cast,
    configs_of,
    place_of,
    plain_entries,
    random_entries,
    random_unit_entries,
)
from turnout.measure.flops import dense_flops

from .test_flops import ROWS, collate


def test_names_and_order() -> None:
    dense = BY_NAME["bert"].build()
    routed = turnout.install(BY_NAME["bert"].build(), ["exit"])
    entries = plain_entries(dense, routed, [0.125, 0.5, 0.5], {"first-1": dense})
    assert [entry.name for entry in entries] == ["dense", "routed-50", "routed-12.5", "first-1"]
    assert [entry.dial for entry in entries] == [None, 0.5, 0.125, None]


def test_copies_are_cast_with_the_host_and_routers_are_not() -> None:
    gate = dict(kind="gate", site="expert", experts=2, split="copied", keep="top-k", top=1)
    model = cast(turnout.install(BY_NAME["bert"].build(), [gate]), torch.bfloat16)
    routing: Any = model.turnout
    assert {p.dtype for p in routing.units.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in routing.routers.parameters()} == {torch.float32}


def test_random_arms_spend_what_they_are_given() -> None:
    dense = BY_NAME["bert"].build()
    parameters = [p.data_ptr() for p in dense.parameters()]
    rows = [
        {"input_ids": [3 + n % 50, 3 + n // 50, 4, 5], "attention_mask": [1] * 4}
        for n in range(400)
    ]
    entries = random_entries(dense, {0.5: 0.4, 0.25: 1.0})
    first, whole = (entry.run(rows, collate, 4096) for entry in entries)
    assert [entry.name for entry in entries] == ["random-50", "random-25"]
    assert abs(first.share - 0.4) < 0.05 and whole.share == 1.0
    assert entries[0].run(rows, collate, 512).units.tolist() == first.units.tolist()
    assert not hasattr(dense, "turnout") and not hasattr(dense.config, "turnout")
    shared = [p.data_ptr() for p in entries[0].model.parameters()]
    assert shared == parameters  # no second copy of the weights


@pytest.mark.parametrize(
    ("router", "place"),
    [
        ({"kind": "gate"}, "layer-sequence"),
        ({"kind": "exit", "hold_first": 1}, "layer-sequence hold_first=1"),
        ({"kind": "policy", "hold_last": 1}, "layer-sequence hold_last=1"),
        (
            {"kind": "token-attention", "visible": False},
            "layer-token hold_first=1 visible=False",
        ),
        ({"kind": "gate", "site": "ffn", "granularity": "token", "layers": [1]}, "ffn-token layer"),
        ({"kind": "gate", "site": "ffn", "granularity": "token", "hold_first": 1}, "ffn-token"),
        ({"kind": "gate", "site": "head"}, "head-sequence"),
        ({"kind": "gate", "site": "expert", "granularity": "token", "keep": "top-k"}, "expert-tok"),
    ],
)
def test_random_skipping_stands_where_the_routers_decide(router: Any, place: str) -> None:
    dense = BY_NAME["bert"].build()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    routed = turnout.install(BY_NAME["bert"].build(), [router])
    assert place_of(routed).startswith(place)
    rows = [
        {"input_ids": [3 + n % 50, 3 + n // 50, 4, 5, 6, 7], "attention_mask": [1] * 6}
        for n in range(300)
    ]
    (entry,) = random_entries(dense, {0.5: 0.9}, configs_of(routed), place)
    assert set(entry.model.turnout.sites) == set(routed.turnout.sites)
    with torch.no_grad(), entry.model.turnout.at(entry.dial), turnout.trace() as trace:
        entry.model(**collate(rows))
    whole = float(dense_flops(dense, np.array([6]))[0])
    spared = float(trace_dense_flops(trace) - trace_flops(trace)) / len(rows)
    assert 1 - spared / whole == pytest.approx(0.9, abs=0.02)
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize(
    ("router", "units"),
    [
        ({"kind": "cluster", "adapters": 4, "top": 2}, 2),
        ({"kind": "cluster", "site": "expert", "experts": 4, "split": "copied"}, 1),
        ({"kind": "gate", "site": "adapter", "adapters": 4, "modulate": True}, 3),
    ],
)
def test_units_of_its_own_are_drawn_in_the_routed_model(router: Any, units: int) -> None:
    routed = turnout.install(
        BY_NAME["bert"].build(), [router, {"kind": "gate", "site": "attention"}]
    )
    dense = BY_NAME["bert"].build()
    plain = plain_entries(dense, {"mine": routed}, [0.75], {})
    place = plain[1].place
    assert place is not None and place.endswith("-sequence of mine")
    (entry,) = random_unit_entries(routed, [0.75], place)
    assert entry.name == f"random-{place}-75" and entry.family == "random"
    shared = {p.data_ptr() for p in routed.parameters()}
    drawn = {p.data_ptr() for n, p in entry.model.named_parameters() if "routers" not in n}
    assert drawn <= shared
    rows = collate([{"input_ids": [3 + n, 4, 5], "attention_mask": [1] * 3} for n in range(40)])
    with torch.no_grad(), entry.model.turnout.at(0.75), turnout.trace() as trace:
        entry.model(**rows)
    for key, route in trace.items():
        used = (route.weight_BTU[:, 0] > 0).sum(-1)
        if key.endswith("attention"):
            assert 0.5 < float(used.float().mean()) < 0.95
        else:
            assert (used == units).all() and len(route.weight_BTU.unique(dim=0)) > 1
    assert type(routed.turnout.all_routers()[0]).__name__ != "RandomUnitRouter"


def test_dense_answers_stay_those_of_the_host() -> None:
    dense = BY_NAME["bert"].build()
    entries = plain_entries(dense, dense, [], {})
    before = entries[0].run(ROWS, collate, 16).logits
    random_entries(dense, {0.5: 0.5})
    assert np.array_equal(before, entries[0].run(ROWS, collate, 16).logits)
    assert dense_flops(dense, np.array([4])) > 0


def test_cast_leaves_routers_in_full_precision() -> None:
    model = cast(turnout.install(BY_NAME["bert"].build(), ["exit"]), torch.bfloat16)
    dtypes = {name.startswith("turnout."): p.dtype for name, p in model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert len(list(model.turnout.parameters())) > LAYERS
