"""Random skipping."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME
from torch import Tensor
from transformers import PreTrainedModel

import turnout


def drawn(model: PreTrainedModel, passes: int = 40) -> Tensor:
    """All weights of some passes over sequences of ids that differ."""
    found = []
    for _ in range(passes):
        with torch.no_grad(), turnout.trace() as trace:
            model(input_ids=torch.randint(3, 60, (4, 5)))
        found += [route.weight_BTU.flatten() for route in trace.values()]
    return torch.cat(found)


@pytest.mark.parametrize("training", [True, False])
def test_the_rate_is_the_share_that_skips(training: bool) -> None:
    model = turnout.install(
        BY_NAME["bert"].build(), [{"kind": "random-skip", "rate": 0.3, "granularity": "token"}]
    ).train(training)
    assert float(drawn(model).mean()) == pytest.approx(0.7, abs=0.03)


def test_a_budget_replaces_the_rate_in_inference_only() -> None:
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "random-skip", "rate": 0.0}])
    with model.turnout.at(0.5):
        assert float(drawn(model).mean()) == pytest.approx(0.5, abs=0.08)
        assert float(drawn(model.train()).mean()) == 1.0


def test_without_a_seed_each_pass_draws_anew() -> None:
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "random-skip", "rate": 0.5}])
    inputs, seen = BY_NAME["bert"].inputs(), set()
    for _ in range(8):
        with torch.no_grad(), turnout.trace() as trace:
            model(**inputs)
        seen.add(tuple(torch.cat([r.weight_BTU.flatten() for r in trace.values()]).tolist()))
    assert len(seen) > 3


def test_the_stacks_of_a_pair_draw_apart() -> None:
    model = turnout.install(BY_NAME["t5"].build(), [{"kind": "random-skip", "rate": 0.5}])
    differ = False
    for seed in range(5):
        model.turnout.seed = seed
        with torch.no_grad(), turnout.trace() as trace:
            model(**BY_NAME["t5"].inputs())
        for n in range(3):
            one, two = trace[f"encoder.{n}.layer"], trace[f"decoder.{n}.layer"]
            differ |= not torch.equal(one.weight_BTU, two.weight_BTU)
    assert differ


def test_sub_blocks_draw_apart() -> None:
    skips = [{"kind": "random-skip", "site": site, "rate": 0.5} for site in ("attention", "ffn")]
    model = turnout.install(BY_NAME["bert"].build(), skips).eval()
    inputs = BY_NAME["bert"].inputs("none")
    inputs = {key: value.repeat(20, 1) for key, value in inputs.items()}
    inputs["input_ids"][:, 1] = torch.arange(len(inputs["input_ids"])) % 50 + 3
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs)
    attention, ffn = (trace[f"encoder.1.{kind}"].active_BT for kind in ("attention", "ffn"))
    assert 0.2 < float((attention == ffn).float().mean()) < 0.8
