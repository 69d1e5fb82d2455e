"""Noise in a running model: its dial, what is refused, half precision, eager hosts, paths."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, Host
from tiny import stacked
from torch import Tensor
from transformers import PreTrainedModel

import turnout
from turnout import UserError
from turnout.execute.paths import average_paths
from turnout.execute.pool import poolable, predict_bulk

BOTH = [{"kind": "ffn"}, {"kind": "attention"}]


def logits_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def bert(noise: Any = BOTH, routers: Any = ()) -> Any:
    return turnout.install(BY_NAME["bert"].build(), routers, noise=noise)


def test_noise_is_in_the_config_and_the_dial_with_it() -> None:
    model = bert("ffn")
    assert [spec["kind"] for spec in model.config.turnout["noise"]] == ["ffn"]
    assert model.turnout.noise_scale == 1.0 and list(model.turnout.noise) == [
        f"ENCODER_{n}_FFN" for n in range(3)
    ]
    with model.turnout.noisy_at(0.25):
        assert model.turnout.noise_scale == model.config.turnout["noise_scale"] == 0.25
    assert model.turnout.noise_scale == 1.0 and model.turnout.is_noisy


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", True, None])
def test_a_wrong_scale_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="noise_scale must be a number from 0 up"):
        bert().turnout.noise_scale = value


@pytest.mark.parametrize(
    ("noise", "routers", "words"),
    [
        (["fnn"], (), "unknown noise 'fnn'.*Did you mean 'ffn'"),
        ([3], (), "noise is given by its kind"),
        ([{"kind": "ffn", "sigma": 1}], (), "noise ffn.sigma: .*its fields are kind, layers"),
        ([{"kind": "ffn", "layers": [7]}], (), "noise 'ffn': layers names .7.; the model has"),
        ([{"kind": "ffn", "hold_first": 3}], (), "noise 'ffn' finds no block"),
        (["ffn", "ffn"], (), "two noises of kind 'ffn' in block encoder.0"),
        (["attention"], [{"kind": "gate", "site": "head"}], "heads of encoder.0 are routed"),
        (["ffn"], [{"kind": "gate", "site": "expert"}], "experts of encoder.0 are routed"),
    ],
)
def test_what_is_refused_changes_nothing(noise: Any, routers: Any, words: str) -> None:
    model = BY_NAME["bert"].build()
    with pytest.raises(UserError, match=words):
        turnout.install(model, routers, noise=noise)
    assert not hasattr(model, "turnout") and model.config._attn_implementation == "sdpa"
    assert not any("turnout" in str(type(module).__mro__) for module in model.modules())


def test_a_host_with_an_attention_of_its_own_is_refused() -> None:
    model: Any = BY_NAME["bert"].build()
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(UserError, match="or noise is on its logits"):
        turnout.install(model, noise="attention")
    turnout.install(model, noise="ffn")


def test_an_eager_host_attends_by_sdpa_until_it_is_uninstalled() -> None:
    model = BY_NAME["llama"].build("eager")
    inputs = BY_NAME["llama"].inputs()
    before = logits_of(model, inputs)
    turnout.install(model, noise="attention")
    with model.turnout.noisy_at(0.0):  # type: ignore[union-attr, operator]
        torch.testing.assert_close(logits_of(model, inputs)[0], before[0], rtol=1e-4, atol=1e-4)
    turnout.uninstall(model)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(before, logits_of(model, inputs))


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "gpt2"])
def test_bf16_hosts(name: str) -> None:
    host = BY_NAME[name]
    model: Any = turnout.install(host.build().to(torch.bfloat16), noise=BOTH)
    found = logits_of(model, host.inputs())
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())
    assert {p.dtype for p in model.turnout.parameters()} == {torch.float32}


def test_a_copy_has_noise_of_its_own() -> None:
    model, inputs = bert(), BY_NAME["bert"].inputs()
    model.turnout.seed = 3
    before = logits_of(model, inputs)
    copy = deepcopy(model)
    for noise in copy.turnout.all_noise():
        noise.rho.data.fill_(2.0)
    assert torch.equal(before, logits_of(model, inputs))
    assert not torch.allclose(before, logits_of(copy, inputs), atol=1e-3)


def test_layers_without_noise_have_none() -> None:
    """Only the last block: the states before it are the host's."""
    host = BY_NAME["bert"]
    model = bert([{"kind": "ffn", "layers": [-1]}, {"kind": "attention", "layers": [-1]}])
    with torch.no_grad():
        noisy = model(**host.inputs(), output_hidden_states=True).hidden_states
        plain = host.build()(**host.inputs(), output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(noisy[:3], plain[:3], strict=True))
    assert not torch.equal(noisy[3], plain[3])


def test_paths_are_averaged_and_a_quiet_model_has_one() -> None:
    model = bert([{"kind": "ffn", "start": 0.5}])
    found = average_paths(model, BY_NAME["bert"].inputs(), 8, seed=1)
    assert float(found.spread.max()) > 0
    again = average_paths(model, BY_NAME["bert"].inputs(), 8, seed=1)
    assert torch.equal(found.probability, again.probability)
    with model.turnout.noisy_at(0.0), pytest.raises(UserError, match="noise_scale above 0"):
        average_paths(model, BY_NAME["bert"].inputs(), 2)


def test_bulk_work_keeps_the_noise() -> None:
    """Rows of noisy models are not pooled, since partial passes have none."""
    rows = [{"input_ids": [3 + n, 4, 5, 6], "attention_mask": [1] * 4} for n in range(6)]
    model = bert(routers=["exit"])
    model.turnout.seed = 2
    assert not poolable(model)
    one, two = (predict_bulk(model, rows, stacked).logits for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    with model.turnout.noisy_at(0.0):
        assert poolable(model)
        quiet = predict_bulk(model, rows, stacked).logits
    assert any((a != b).any() for a, b in zip(one, quiet, strict=True))
    alone = predict_bulk(bert(), rows, stacked)
    assert alone.share == 1.0 and alone.units.tolist() == [3.0] * 6 and alone.use == {}


def plain_step(model: PreTrainedModel, ids: Tensor, cache: Any = None) -> Any:
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_keys_of_a_cache_stand_where_they_stood(name: str) -> None:
    """One draw for the pass, so that steps of one's own share it: places are all that differs."""
    host: Host = BY_NAME[name]
    noise = [{"kind": "attention", "per": "forward", "start": 0.5}]
    model: Any = turnout.install(host.build(), noise=noise)
    model.turnout.seed = 7
    ids = host.inputs("none")["input_ids"]
    whole = plain_step(model, ids).logits
    cache, parts = None, []
    for chunk in ids.split([4, 1, 3, 1], 1):
        out = plain_step(model, chunk, cache)
        cache = out.past_key_values
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
