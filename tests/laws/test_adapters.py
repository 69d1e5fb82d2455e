"""Hosts, law: adapters that were added before the routers are skipped with the rows they serve."""

from __future__ import annotations

from typing import Any

import pytest
from fixed_router import FixedConfig
from hosts_table import BY_NAME, Host
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import turnout
from laws.test_execution import assert_same, run
from turnout import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # GPT-2's Conv1D
]


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    """The model with an adapter of rank 2, which is not zero, beside every linear map."""
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    wrapped: Any = get_peft_model(model, config)
    return wrapped.base_model.model


@pytest.mark.parametrize("site", ["layer", "attention", "ffn"])
def test_packed_equals_reference_with_adapters(host: Host, site: str) -> None:
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
