"""What a routed model refuses to write on, and what a skipped layer leaves in the cache."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME
from transformers import DynamicCache

import turnout
from turnout.cost import trace_flops
from turnout.errors import UserError

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def routed(name: str = "llama", **spec: Any) -> Any:
    model: Any = BY_NAME[name].build()
    return turnout.install(model, {"kind": "random-skip", "rate": 0.5, **spec})


def ids(length: int = 5, rows: int = 1) -> torch.Tensor:
    return torch.arange(3, 3 + length).repeat(rows, 1)


def test_prompts_that_cannot_be_written_on() -> None:
    model = routed()
    with pytest.raises(UserError, match="prompt 0 is empty"):
        model.generate(ids(0), **OPTIONS)
    mask = torch.tensor([[1, 1], [0, 0]])
    with pytest.raises(UserError, match="prompt 1 is empty"):
        model.generate(ids(2, 2), attention_mask=mask, **OPTIONS)
    with pytest.raises(UserError, match=r"prompt 0 has 70 tokens, but LlamaForCausalLM reads 64"):
        model.generate(torch.ones(1, 70, dtype=torch.long), **OPTIONS)


def test_budget_of_zero() -> None:
    model = routed()
    with model.turnout.at(0.0), pytest.raises(UserError, match="budget of 0 would run nothing"):
        model.generate(ids(), **OPTIONS)
    with model.turnout.at([0.5, 0.0]), pytest.raises(UserError, match="budget of 0"):
        model.generate(ids(5, 2), **OPTIONS)


@pytest.mark.filterwarnings("ignore:router 'gate' decides")
def test_router_that_peeks_ahead() -> None:
    model: Any = BY_NAME["llama"].build()
    turnout.install(model, {"kind": "gate"})
    with pytest.raises(UserError, match="'gate' decides for a whole sequence from all of its"):
        model.generate(ids(), **OPTIONS)
    bart: Any = turnout.install(BY_NAME["bart"].build(), {"kind": "gate", "stack": "encoder"})
    assert bart.generate(ids(), **OPTIONS).shape[0] == 1


def test_cache_of_another_model() -> None:
    model, inputs = routed(), ids()
    deeper = DynamicCache()
    for layer in range(5):
        deeper.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), layer)
    with pytest.raises(UserError, match="has 5 layers, the model 3"):
        model.generate(inputs, past_key_values=deeper, **OPTIONS)
    wider = DynamicCache()
    for layer in range(3):
        wider.update(torch.zeros(1, 4, 3, 8), torch.zeros(1, 4, 3, 8), layer)
    with pytest.raises(UserError, match="1 rows of 4 heads of width 8; the model has 2 of 8"):
        model.generate(inputs, past_key_values=wider, **OPTIONS)


def test_model_in_training() -> None:
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        routed().train().generate(ids(), **OPTIONS)


def test_copy_writes_for_itself() -> None:
    model = routed()
    twin = deepcopy(model)
    model.turnout.seed = twin.turnout.seed = 5
    with torch.no_grad():
        for parameter in twin.lm_head.parameters():
            parameter.neg_()
    assert not torch.equal(model.generate(ids(), **OPTIONS), twin.generate(ids(), **OPTIONS))
    turnout.uninstall(model)
    assert "generate" not in vars(model) and model.generate(ids(), **OPTIONS).shape == (1, 9)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "phi", "mixtral"])
def test_skipped_layers_write_what_they_would_have(name: str) -> None:
    """A pass in which no layer runs leaves the keys and values of the embedded tokens, projected by
    each layer, and costs no more than that."""
    model = routed(name, rate=1.0)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), turnout.trace() as trace:
        model(ids(), past_key_values=cache, use_cache=True)
    assert trace.written == set(trace) and not trace.entered
    host: Any = BY_NAME[name].build()
    whole = DynamicCache(config=model.config)
    with torch.no_grad():
        host(ids(), past_key_values=whole, use_cache=True)
    assert cache.get_seq_length() == whole.get_seq_length() == 5
    torch.testing.assert_close(cache.layers[0].keys, whole.layers[0].keys)
    torch.testing.assert_close(cache.layers[0].values, whole.layers[0].values)
    for mine, its in zip(cache.layers, whole.layers, strict=True):
        assert mine.keys.shape == its.keys.shape
    site = next(iter(trace.values())).site
    assert float(trace_flops(trace)) == pytest.approx(3 * 5 * site.cost.idle, rel=1e-5)
    assert "update" not in vars(cache)


def test_what_runs_in_a_skipped_layer() -> None:
    """Neither attention nor the feed-forward network."""
    model = routed(rate=1.0)
    ran: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("mlp", "o_proj", "k_proj")):
            module.register_forward_pre_hook(lambda m, a, n=name: ran.append(n.split(".")[-1]))
    with torch.no_grad():
        model(ids(), past_key_values=DynamicCache(config=model.config), use_cache=True)
    assert ran == ["k_proj"] * 3
