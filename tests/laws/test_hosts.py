"""Hosts, laws of installation: what routing leaves as it was."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from fixed_router import FixedConfig
from hosts_table import BY_NAME, LAYERS, Host, output_mask
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import turnout
from turnout.routers import RouterConfig

SITES = ("layer", "attention", "ffn")
UNITS = ("head", "expert", "adapter")


def logits_of(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def every_site(sites: tuple[str, ...] = SITES, **fields: object) -> list[RouterConfig]:
    """One fixed router for each kind of site."""
    return [FixedConfig(site=site, **fields) for site in sites]  # type: ignore[arg-type]


@pytest.mark.parametrize("sites", [SITES, UNITS], ids="+".join)
def test_uninstall_leaves_no_trace(host: Host, sites: tuple[str, ...]) -> None:
    host.has(*sites)
    model = host.build()
    before = logits_of(model, host.inputs())  # a first pass may itself leave attributes
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    state, config = deepcopy(model.state_dict()), model.config.to_dict()
    turnout.install(model, every_site(sites, granularity="token"))
    assert not torch.equal(before, logits_of(model, host.inputs()))
    turnout.uninstall(model)
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert model.config.to_dict() == config
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert torch.equal(before, logits_of(model, host.inputs()))


def test_installed_keys_and_classes_are_the_hosts(host: Host) -> None:
    model = host.build()
    names, keys = [type(m).__qualname__ for m in model.modules()], list(model.state_dict())
    classes = [type(m) for m in model.modules()]
    turnout.install(model, every_site(soft=True))
    own = [key for key in model.state_dict() if not key.startswith("turnout.")]
    assert own == keys
    modules = [m for name, m in model.named_modules() if name.split(".")[0] != "turnout"]
    assert [type(m).__qualname__ for m in modules] == names
    assert all(isinstance(m, cls) for m, cls in zip(modules, classes, strict=True))


@pytest.mark.parametrize("granularity", ["batch", "sequence", "token"])
@pytest.mark.parametrize("padding", ["right", "none"])
def test_all_ones_is_the_plain_host(host: Host, granularity: str, padding: str) -> None:
    inputs = host.inputs(padding)
    model = host.build()
    before = logits_of(model, inputs)
    for site in SITES:
        turnout.install(model, [FixedConfig(site=site, granularity=granularity, keep=1.0)])
        assert torch.equal(before, logits_of(model, inputs)), site
        turnout.uninstall(model)


def test_a_differentiable_weight_of_one_changes_nothing(host: Host) -> None:
    """Training multiplies weights, so that gradients flow: a weight of 1 is neutral."""
    model = host.build()
    before = model(**host.inputs()).logits
    turnout.install(model, every_site(soft=True, keep=1.0))
    for router in model.turnout.all_routers():
        router.weight.data.fill_(1.0)
    after = model(**host.inputs()).logits
    after.sum().backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in model.turnout.all_routers())
    # rows are packed without padding here, so a matrix product may round differently
    real = output_mask(host.inputs(), after)
    torch.testing.assert_close(after * real, before * real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "bart"])
def test_padding_changes_nothing_with_an_attention_of_ones_own(name: str) -> None:
    """Registered as Transformers documents it; the routes are those of a gate per token."""
    AttentionInterface.register("own", sdpa_attention_forward)
    AttentionMaskInterface.register("own", sdpa_mask)
    host = BY_NAME[name]
    model, inputs = host.build(), host.inputs("none")
    model.set_attn_implementation("own")
    gate = {"kind": "gate", "site": "ffn", "granularity": "token", "open": 0.0}
    turnout.install(model, [gate])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.turnout.budget = 0.5
    longer = {key: F.pad(value, (0, 4)) for key, value in inputs.items()}
    with turnout.trace() as trace:
        short, long = logits_of(model, inputs), logits_of(model, longer)
    assert 0 < float(turnout.trace_share(trace)) < 1
    if long.ndim == 3:
        long = long[:, : short.shape[1]]
    torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-4)


def test_deepcopy_is_an_independent_routed_model(host: Host) -> None:
    model = turnout.install(host.build(), every_site(granularity="token", soft=True))
    before = logits_of(model, host.inputs())
    copy = deepcopy(model)
    assert torch.equal(before, logits_of(copy, host.inputs()))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert torch.equal(before, logits_of(model, host.inputs()))
    turnout.uninstall(copy)
    assert torch.equal(before, logits_of(model, host.inputs()))
    assert not hasattr(copy, "turnout") and model.turnout.current_flow().trace


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_hidden_states_keep_count_and_shape(host: Host, granularity: str) -> None:
    inputs = host.inputs()
    plain = host.build()
    model = turnout.install(host.build(), [FixedConfig(granularity=granularity, keep=0.3)])
    with torch.no_grad():
        routed_out = model(**inputs, output_hidden_states=True)
        plain_out = plain(**inputs, output_hidden_states=True)
    fields = [name for name in plain_out if name.endswith("hidden_states") and plain_out[name]]
    assert fields
    for name in fields:
        want, got = plain_out[name], routed_out[name]
        assert len(want) == len(got) == LAYERS + 1, name
        assert [state.shape for state in got] == [state.shape for state in want], name
    # nothing was changed for other models of this class
    with torch.no_grad():
        fresh = host.build()(**inputs, output_hidden_states=True)
    for name in fields:
        assert all(torch.equal(a, b) for a, b in zip(fresh[name], plain_out[name], strict=True))


def test_hidden_states_of_a_skipped_layer_are_its_input(host: Host) -> None:
    model = turnout.install(host.build(), [FixedConfig(keep=0.0, layers=(1,))])
    with torch.no_grad():
        out = model(**host.inputs(), output_hidden_states=True)
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        states = out.get(name)
        if states is not None:
            assert torch.equal(states[1], states[2]), name
            assert not torch.equal(states[0], states[1]), name
