"""Averaged paths: a seed repeats them, the spread is theirs, one path is a plain pass."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout import UserError
from turnout.execute.paths import average_paths


def routed(granularity: str = "sequence"):
    torch.manual_seed(0)
    model = BY_NAME["bert"].build().eval()
    return turnout.install(model, [{"kind": "random-jump", "p": 0.5, "granularity": granularity}])


@pytest.mark.parametrize("granularity", ["sequence", "batch"])
def test_a_seed_repeats_the_average(granularity: str) -> None:
    model = routed(granularity)
    inputs = {"input_ids": torch.arange(3, 27).view(4, 6)}
    one = average_paths(model, inputs, 6, seed=5)
    two = average_paths(model.train(), inputs, 6, seed=5)  # as a Trainer leaves it
    assert model.training
    model.eval()
    assert torch.equal(one.probability, two.probability)
    assert torch.allclose(one.probability, one.each.mean(0)) and one.each.shape[0] == 6
    assert torch.allclose(one.probability.sum(-1), torch.ones(4))
    assert one.spread.max() > 0
    assert model.turnout.seed is None
    model.turnout.seed = 5
    with torch.inference_mode():
        first = model(**inputs)["logits"].softmax(-1)
    assert torch.equal(one.each[0], first)


def test_paths_that_are_all_the_same_are_refused() -> None:
    model = turnout.install(BY_NAME["bert"].build(), "gate")
    with pytest.raises(UserError, match="take the same path each time"):
        average_paths(model, {"input_ids": torch.ones(1, 3).long()}, 2)


def test_no_path_and_no_router_are_refused() -> None:
    model = routed()
    with pytest.raises(UserError, match="at least 1"):
        average_paths(model, {"input_ids": torch.ones(1, 3).long()}, 0)
    with pytest.raises(UserError, match="install"):
        average_paths(turnout.uninstall(model), {"input_ids": torch.ones(1, 3).long()}, 2)
