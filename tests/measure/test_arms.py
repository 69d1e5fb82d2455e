"""The arms of a measurement: names, dials, and random skipping at the same work."""

from __future__ import annotations

import numpy as np
import torch
from hosts_table import BY_NAME, LAYERS

import turnout
from turnout.measure.arms import cast, plain_entries, random_entries
from turnout.measure.flops import dense_flops

from .test_flops import ROWS, collate


def test_names_and_order() -> None:
    dense = BY_NAME["bert"].build()
    routed = turnout.install(BY_NAME["bert"].build(), ["exit"])
    entries = plain_entries(dense, routed, [0.125, 0.5, 0.5], {"first-1": dense})
    assert [entry.name for entry in entries] == ["dense", "routed-50", "routed-12.5", "first-1"]
    assert [entry.dial for entry in entries] == [None, 0.5, 0.125, None]


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
