"""Hosts, law: adapters that were added before the routers are skipped with the rows they serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixed_router import FixedConfig
from hosts_table import BY_NAME, Host
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import turnout
from laws.test_execution import assert_same, run
from laws.test_routers import shake
from turnout import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # GPT-2's Conv1D
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys"),  # PEFT's own, of mixtures
]


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    """The model with an adapter of rank 2, which is not zero, beside every linear map."""
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    wrapped: Any = get_peft_model(model, config)
    return wrapped.base_model.model


@pytest.mark.parametrize("site", ["layer", "attention", "ffn", "head"])
def test_packed_equals_reference_with_adapters(host: Host, site: str) -> None:
    host.has(site)
    model = adapted(host.build().double())
    turnout.install(model, [FixedConfig(site=site, granularity="token")]).double()
    packed = run(model, host.inputs())
    assert any("lora_A" in name and grad.any() for name, grad in packed[1].items())
    assert_same(packed, run(model, host.inputs(), reference=True))
    turnout.uninstall(model)
    assert not any("Routed" in type(module).__mro__[1].__name__ for module in model.modules())


@pytest.mark.parametrize("name", ["distilbert", "llama"])
def test_adapters_over_routed_leaves_are_refused(name: str) -> None:
    host = BY_NAME[name]
    model = turnout.install(host.build(), [FixedConfig(site="attention", granularity="token")])
    model = adapted(model)
    assert not any("lora" in key for key, _ in model.turnout.named_parameters())
    with pytest.raises(UserError, match="uninstall, add adapters, then install"):
        model(**host.inputs())


def test_routers_train_beside_adapters_and_both_are_saved(tmp_path: Path) -> None:
    """As docs/hosts.md tells it."""
    host = BY_NAME["bert"]
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft_model: Any = get_peft_model(host.build(), config)
    routed = turnout.install(peft_model.base_model.model, {"kind": "gate", "open": 0.1})
    trains = [name for name, p in routed.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("turnout.") for name in trains)
    before = {name: p.detach().clone() for name, p in routed.named_parameters() if name in trains}
    optimizer = torch.optim.SGD([p for p in routed.parameters() if p.requires_grad], lr=0.5)
    routed.train()(**host.inputs(), labels=torch.tensor([0, 1, 1]))["loss"].backward()
    optimizer.step()
    routed.eval()
    for kind in ("lora_", "turnout."):
        changed = [n for n in before if kind in n and not before[n].equal(routed.get_parameter(n))]
        assert changed, kind
    routed.turnout.budget = 0.5
    with torch.no_grad():
        expected = routed(**host.inputs())["logits"]
    routers, spec = routed.turnout.state_dict(), routed.config.turnout["routers"]
    turnout.uninstall(routed)
    merged = turnout.install(peft_model.merge_and_unload(), spec)
    merged.turnout.load_state_dict(routers)
    merged.turnout.budget = 0.5
    merged.save_pretrained(tmp_path)
    again = turnout.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**host.inputs())["logits"], expected)


@pytest.mark.parametrize("form", ["lora", "bottleneck"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_routed_adapters_keep_the_cache(name: str, form: str) -> None:
    """Token by token with the key-value cache as all at once without: a gate by token over units
    that change keys and values."""
    spec = {
        "kind": "gate",
        "site": "adapter",
        "form": form,
        "granularity": "token",
        "modulate": True,
        "targets": ["query", "key", "value", "output"] if name == "llama" else ["output"],
        "open": 0.0,
    }
    host = BY_NAME[name]
    model = turnout.install(host.build(), [spec])
    shake(model)
    model.turnout.budget = 0.5
    ids = host.inputs("none")["input_ids"]
    with torch.no_grad(), turnout.trace() as trace:
        whole = model(input_ids=ids, use_cache=False)["logits"]
        first = model(input_ids=ids[:, :3], use_cache=True)
        steps, cache = [first["logits"]], first["past_key_values"]
        for at in range(3, ids.shape[1]):
            out = model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            steps.append(out["logits"])
            cache = out["past_key_values"]
    assert ids.shape[1] > 5 and cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
    used = torch.cat([route.weight_BTU.flatten() for route in trace.values()])
    assert (used == 0).any() and (used > 0).any()
