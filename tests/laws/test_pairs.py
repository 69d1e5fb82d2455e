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

SITES: dict[str, tuple[str, ...]] = {
    "gate": ("ffn", "layer", "attention", "head", "expert", "adapter"),
    "exit": ("layer",),
    "random-skip": ("attention", "layer", "ffn", "head", "expert", "adapter"),
    "random-jump": ("layer",),
    "random-unit": ("adapter", "expert", "head"),
    "attention": ("head", "layer", "attention", "ffn", "expert", "adapter"),
    "token-attention": ("layer", "ffn"),
    "cluster": ("adapter", "expert", "head"),
    "mixture": ("adapter",),
    "policy": ("layer", "attention", "ffn", "head", "expert", "adapter"),
    "q-learning": ("layer", "attention", "ffn"),
    "token-exit": ("layer",),
}
MORE: dict[str, dict[str, Any]] = {
    "gate": {"open": 0.1},
    "exit": {"hidden": 0, "hold_first": 1},
    "token-attention": {"stack": "encoder", "keep": "top-k"},
    "mixture": {"top": 2},
    "token-exit": {"stack": "decoder", "criterion": "state", "hold_first": 1},
}
BY_TOKEN = {("gate", "ffn"), ("gate", "expert"), ("random-skip", "attention")}


def pairs() -> list[Any]:
    """Every router at every site that it serves."""
    found = []
    for kind, sites in SITES.items():
        for site in sites:
            grain = {"granularity": "token"} if (kind, site) in BY_TOKEN else {}
            spec = {"kind": kind, "site": site, "experts": 4, **grain, **MORE.get(kind, {})}
            found.append(pytest.param(spec, id=f"{kind}-{site}"))
    return found


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
    """Thresholds that split the scores of an open pass in halves: those of the first site, which
    what leaves there never passes, or of all, where the first is the best unit of most texts."""
    with torch.no_grad(), model.turnout.at(1.0), turnout.trace() as trace:
        model(**inputs)
    for router in model.turnout.all_routers():
        if router.scored:
            scores = [trace[site.key].score_BTU.flatten() for site in router.sites]
            level = min(scores[0].quantile(0.5), torch.cat(scores).quantile(0.5))
            router.levels = [(0.5, float(level))]
    note_dial(model)


def unsuited(spec: dict[str, Any], host: Host) -> str | None:
    """Why a host cannot have a router, which it says itself; None where it can."""
    if spec["kind"] == "exit" and (len(host.stacks) == 2 or host.name == "olmoe"):
        return "Transformers has no such host with a head for classes"
    if spec["site"] == "head" and not host.heads:
        return "heads of this host cannot be routed"
    wants = {"token-attention": "encoder", "token-exit": "decoder"}.get(spec["kind"])
    if wants is not None and wants not in host.stacks:
        return "finds no site"
    if spec["kind"] == "cluster" and len(host.stacks) == 2:
        return "serves one stack"
    return None


@pytest.mark.filterwarnings("ignore:random-jump runs at least")
@pytest.mark.filterwarnings("ignore:router .* decides for a whole")
@pytest.mark.parametrize("spec", pairs())
def test_every_router_on_every_family(spec: dict[str, Any], host: Host, tmp_path: Path) -> None:
    if (reason := unsuited(spec, host)) is not None:
        if spec["kind"] != "exit":
            with pytest.raises(turnout.UserError, match=reason):
                turnout.install(host.build(), [spec])
        return
    inputs = host.inputs()
    model = built(spec["kind"], host)
    with torch.no_grad():
        plain = model(**inputs)["logits"]
    turnout.install(model, [spec])
    generator = torch.Generator().manual_seed(1)
    scale = 0.1 if spec["kind"] == "q-learning" else 0.5  # sure of nothing
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
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
    assert set(SITES) == set(turnout.ROUTERS) - {"fixed"}
