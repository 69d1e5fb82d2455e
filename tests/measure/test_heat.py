"""The heat map shows what ran for a text of the test set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixed_router import FixedConfig, fixed_router
from hosts_table import BY_NAME, LAYERS

import turnout
from turnout.measure.arms import Entry
from turnout.measure.heat import choose, heatmap

from .test_flops import collate
from .tiny_run import tiny_tokenizer

ROW = {"input_ids": [2, 4, 5, 15, 3], "attention_mask": [1] * 5}


def test_chooses_a_text_that_fits_and_runs_the_mean() -> None:
    lengths = np.array([4, 10, 20, 30, 90])
    assert choose(lengths, np.array([3.0, 6.0, 2.0, 3.0, 1.0])) == 3
    assert choose(np.array([90, 60, 70]), np.array([1.0, 2.0, 3.0])) == 1


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("site", ["layer", "ffn"])
def test_shows_the_routes(site: str, granularity: str) -> None:
    model = BY_NAME["roberta"].build()
    with fixed_router():
        turnout.install(model, [FixedConfig(site=site, granularity=granularity, layers=(0, 2))])
    entry = Entry("routed-50", "routed", model, 0.5, 0.5)
    found = heatmap(entry, ROW, collate, tiny_tokenizer())
    assert found.tokens == ["[CLS]", "the", "film", "good", "[SEP]"]
    assert found.text == "the film good" and found.arm == "routed-50"
    assert found.layers == ["encoder 1", "encoder 2", "encoder 3"] and len(found.ran) == LAYERS
    assert found.ran[1] == [1.0] * 5  # no router there
    trace = model.turnout.current_flow().trace
    for layer in (0, 2):
        route = trace[f"encoder.{layer}.{site}"]
        part = model.turnout.part_of_block(route.site)
        active_BT = route.active_BT.expand(1, 5)
        expected = torch.where(active_BT[0], 1.0, 1.0 - part)
        assert found.ran[layer] == pytest.approx(expected.tolist())
