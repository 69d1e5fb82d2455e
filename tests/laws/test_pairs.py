"""Every router on every family: packed equals the reference, it is saved whole, and goes off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hosts_table import Host, output_mask
from torch import Tensor
from transformers import PreTrainedModel

import turnout
from turnout.execute import reference_execution
from turnout.train.saving import note_dial

SPECS: dict[str, dict[str, Any]] = {
    "gate": {"kind": "gate", "site": "ffn", "granularity": "token", "open": 0.1},
    "exit": {"kind": "exit", "hidden": 0, "hold_first": 1},
    "random-skip": {"kind": "random-skip", "site": "attention", "granularity": "token"},
    "random-jump": {"kind": "random-jump"},
}


def answers(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of the real tokens at half of the work, by one seed."""
    model.turnout.budget, model.turnout.seed = 0.5, 3
    with torch.no_grad():
        logits = model(**inputs)["logits"]
    return logits * output_mask(inputs, logits)


def built(kind: str, host: Host) -> PreTrainedModel:
    """The host; for exits, whose heads answer for whole inputs, with such a head of its own."""
    if kind != "exit" or "Classification" in host.model:
        return host.build()
    name = host.model.replace("ForCausalLM", "").replace("LMHeadModel", "")
    torch.manual_seed(0)
    config = host.config()
    config.pad_token_id = 0
    return getattr(hf, f"{name}ForSequenceClassification")(config).eval()


def dial(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """Thresholds that split the scores of the first site in an open pass in halves."""
    with torch.no_grad(), model.turnout.at(1.0), turnout.trace() as trace:
        model(**inputs)
    for router in model.turnout.all_routers():
        if router.scored:
            scores = trace[router.sites[0].key].score_BTU.flatten()
            router.levels = [(0.5, float(scores.quantile(0.5)))]
    note_dial(model)


@pytest.mark.filterwarnings("ignore:random-jump runs at least")
@pytest.mark.filterwarnings("ignore:router .* decides for a whole")
@pytest.mark.parametrize("kind", SPECS)
def test_every_router_on_every_family(kind: str, host: Host, tmp_path: Path) -> None:
    if kind == "exit" and len(host.stacks) == 2:
        pytest.skip("hosts with two stacks have no head for classes here")
    inputs = host.inputs()
    model = built(kind, host)
    with torch.no_grad():
        plain = model(**inputs)["logits"]
    turnout.install(model, [SPECS[kind]])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    dial(model, inputs)
    with turnout.trace() as trace:
        packed = answers(model, inputs)
    assert 0 < float(turnout.trace_share(trace)) < 1
    with reference_execution():
        torch.testing.assert_close(packed, answers(model, inputs), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(answers(turnout.load(tmp_path), inputs), packed)
    with torch.no_grad():
        assert torch.equal(turnout.uninstall(model)(**inputs)["logits"], plain)


def test_the_table_holds_every_router() -> None:
    assert set(SPECS) == set(turnout.ROUTERS) - {"fixed"}
