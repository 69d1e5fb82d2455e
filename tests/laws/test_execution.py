"""Hosts, law: packed execution equals the slow reference, in value and in every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixed_router import FixedConfig
from hosts_table import HOSTS, Host, output_mask
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import turnout
from turnout.execute import reference_execution
from turnout.execute.adapters import AdapterLeaf

TEXT_DECODERS = [host for host in HOSTS if host.stacks == ("decoder",)]
ENCODERS = [host for host in HOSTS if host.hideable]
by_name = {"ids": lambda host: host.name}


def run(
    model: PreTrainedModel, inputs: dict[str, Tensor], reference: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of the real tokens, and the gradients of a fixed function of them, by parameter."""
    model.zero_grad()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    classifies = "Classification" in type(model).__name__
    kwargs: dict[str, Any] = {} if classifies else {"use_cache": False}
    if reference:
        with reference_execution():
            logits = model(**inputs, **kwargs).logits
    else:
        logits = model(**inputs, **kwargs).logits
    logits = logits * output_mask(inputs, logits)
    generator = torch.Generator().manual_seed(2)
    (logits * torch.randn(logits.shape, generator=generator).double()).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads


def assert_same(
    one: tuple[Tensor, dict[str, Tensor]], two: tuple[Tensor, dict[str, Tensor]]
) -> None:
    """Equal values and equal gradients; no gradient is the same as a zero one.

    The tolerance is that of float32: some hosts compute their norms in it whatever the dtype.
    """
    assert_near("logits", one[0], two[0])
    for name in one[1].keys() | two[1].keys():
        some = one[1].get(name, two[1].get(name))
        assert some is not None
        zero = torch.zeros_like(some)
        assert_near(name, one[1].get(name, zero), two[1].get(name, zero))


def assert_near(name: str, one: Tensor, two: Tensor) -> None:
    """Equal up to 1e-5 of the largest entry."""
    assert one.isfinite().all(), f"{name} is not finite"
    scale = two.abs().max().clamp_min(1.0)
    torch.testing.assert_close(
        one / scale, two / scale, rtol=0, atol=1e-5, msg=lambda message: f"{name}: {message}"
    )


ATTENTION = ("query", "key", "value", "output")


def routed(host: Host, *routers: dict[str, Any]) -> PreTrainedModel:
    """A routed host in float64, where equal means equal."""
    model = host.build().double()
    turnout.install(model, [FixedConfig(**router) for router in routers]).double()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.turnout.units.parameters():  # a new adapter adds nothing
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.2
    return model


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("site", ["layer", "attention", "ffn", "head", "expert", "adapter"])
def test_packed_equals_reference(host: Host, site: str, granularity: str, soft: bool) -> None:
    host.has(site)
    inputs = host.inputs()
    model = routed(host, dict(site=site, granularity=granularity, soft=soft))
    packed, reference = run(model, inputs), run(model, inputs, reference=True)
    assert_same(packed, reference)
    plain = run(host.build().double(), inputs)
    assert (packed[0] - plain[0]).abs().max() > 1e-3, "the routes change nothing: a vacuous test"
    if soft:
        assert packed[1]["turnout.routers.0_fixed.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    "sites",
    [
        ("attention", "ffn"),
        ("attention", "expert"),
        ("head", "expert"),
        ("ffn", "adapter"),
        ("head", "adapter"),
        *(("layer", other) for other in ("attention", "ffn", "head", "expert", "adapter")),
    ],
    ids="+".join,
)
def test_two_sites_in_one_block(host: Host, sites: tuple[str, str]) -> None:
    host.has(*sites)
    one, two = sites
    model = routed(
        host,
        dict(site=one, granularity="sequence" if one == "layer" else "token", keep=0.7),
        dict(site=two, granularity="token", soft=True, draw=1),
    )
    assert_same(run(model, host.inputs()), run(model, host.inputs(), reference=True))


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_adapters_at_every_projection_of_routed_heads(host: Host, granularity: str) -> None:
    host.has("head")
    model = routed(
        host,
        dict(site="head", granularity=granularity),
        dict(site="adapter", granularity="token", draw=1, targets=ATTENTION),
    )
    assert_same(run(model, host.inputs()), run(model, host.inputs(), reference=True))


@pytest.mark.parametrize("site", ["layer", "attention", "ffn"])
def test_adapters_at_every_target_of_a_routed_block(host: Host, site: str) -> None:
    """Some hosts' ``in`` and ``out`` are the very leaves that pack rows and put them back."""
    host.has(site, "adapter")
    soft = site != "layer"
    model = routed(
        host,
        dict(site=site, granularity="token", soft=soft),
        dict(site="adapter", granularity="token", soft=True, draw=1, targets=host.targets),
    )
    assert_same(run(model, host.inputs()), run(model, host.inputs(), reference=True))


@pytest.mark.parametrize(("site", "target"), [("attention", "output"), ("ffn", "out")])
def test_a_weight_scales_what_adapters_add(host: Host, site: str, target: str) -> None:
    """A unit beside the last matrix of a sub-block is as good as one merged into that matrix."""
    host.has(site, "adapter")
    if target not in host.targets:
        pytest.skip("a mixture's experts hold no linear layers")
    adapter = dict(site="adapter", keep=1.0, adapters=1, targets=(target,))
    model = routed(host, dict(site=site, granularity="token", soft=True), adapter)
    found = run(model, host.inputs())[0]
    merged = routed(host, dict(site=site, granularity="token", soft=True))
    for path, module in model.named_modules():
        if isinstance(module, AdapterLeaf):
            _, bank, leaf = module._turnout_adapters
            change = bank.scale * bank.b[leaf][0] @ bank.a[leaf][0]
            weight: Any = merged.get_submodule(path).weight
            weight.data += change.T if isinstance(module, Conv1D) else change
    torch.testing.assert_close(found, run(merged, host.inputs())[0])


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_gates_of_heads_learn_from_what_runs(host: Host, granularity: str) -> None:
    """Weights of 0 that carry a gradient, as a gate has them in training."""
    host.has("head")
    model = host.build().double()
    gate = {"kind": "gate", "site": "head", "granularity": granularity, "open": 0.0}
    turnout.install(model, [gate]).double().train()
    model.config.apply_spec_augment = False
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    torch.manual_seed(3)
    packed = run(model, host.inputs())
    assert any(name.startswith("turnout.") and grad.any() for name, grad in packed[1].items())
    torch.manual_seed(3)
    assert_same(packed, run(model, host.inputs(), reference=True))


@pytest.mark.parametrize("other", ["expert", "adapter"])
def test_units_of_the_tokens_that_run(host: Host, other: str) -> None:
    model = routed(
        host,
        dict(site="layer", granularity="token", keep=0.7),
        dict(site=other, granularity="token", soft=True, draw=1),
    )
    assert_same(run(model, host.inputs()), run(model, host.inputs(), reference=True))


@pytest.mark.parametrize("keep", [0.0, 0.15])
@pytest.mark.parametrize("site", ["layer", "attention", "ffn", "head", "expert", "adapter"])
def test_few_or_no_rows(host: Host, site: str, keep: float) -> None:
    host.has(site)
    model = routed(host, dict(site=site, granularity="token", keep=keep))
    assert_same(run(model, host.inputs()), run(model, host.inputs(), reference=True))


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("host", TEXT_DECODERS, **by_name)
def test_left_padding(host: Host, granularity: str) -> None:
    """A training forward of a decoder whose short sequence starts with padding."""
    inputs = host.inputs("left")
    model = routed(host, dict(site="layer", granularity=granularity, soft=True)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert_same(run(model, inputs), run(model, inputs, reference=True))


@pytest.mark.parametrize("site", ["layer", "attention"])
@pytest.mark.parametrize("host", ENCODERS, **by_name)
def test_hidden_tokens(host: Host, site: str) -> None:
    """visible: false removes the skipped tokens from attention."""
    router = dict(site=site, granularity="token", keep=0.6)
    hidden = routed(host, dict(router, visible=False))
    out = run(hidden, host.inputs())
    assert_same(out, run(hidden, host.inputs(), reference=True))
    visible = run(routed(host, router), host.inputs())
    assert (out[0] - visible[0]).abs().max() > 1e-3


@pytest.mark.parametrize("host", [h for h in HOSTS if len(h.stacks) == 2], **by_name)
def test_hidden_tokens_of_an_encoder_that_is_read(host: Host) -> None:
    router = dict(site="layer", granularity="token", keep=0.6, stack="encoder")
    hidden = routed(host, dict(router, visible=False))
    out = run(hidden, host.inputs())
    assert_same(out, run(hidden, host.inputs(), reference=True))
    visible = run(routed(host, router), host.inputs())
    assert (out[0] - visible[0]).abs().max() > 1e-3


@pytest.mark.parametrize("host", [h for h in HOSTS if not h.hideable], **by_name)
def test_decoders_hide_nothing(host: Host) -> None:
    with pytest.raises(turnout.UserError, match="encoders only"):
        routed(host, dict(granularity="token", visible=False))


@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_full_attention(host: Host, attention: str, padding: str) -> None:
    """A query's result does not depend on which other tokens query, with and without a mask.

    In the last block, where nothing comes after, a row that runs must get the plain host's value.
    """
    inputs = host.inputs(padding)
    if padding == "none":
        inputs = {k: v for k, v in inputs.items() if "attention_mask" not in k}
    states = {}
    plain = host.build(attention)
    model = turnout.install(
        host.build(attention), [FixedConfig(site="attention", granularity="token", layers=(-1,))]
    )
    for name, some in (("plain", plain), ("routed", model)):
        blocks = _last_blocks(some)
        hooks = [
            block.register_forward_hook(
                lambda m, a, out, n=name, i=i: states.__setitem__(
                    (n, i), out[0] if isinstance(out, tuple) else out
                )
            )
            for i, block in enumerate(blocks)
        ]
        with torch.no_grad(), turnout.trace() as trace:
            some(**inputs)
        for hook in hooks:
            hook.remove()
    # an encoder's state reaches the decoder's last block: only the first stack is comparable
    first = next(iter(trace.values()))
    ran_BT = first.active_BT & trace.valid_BT(first.site.stack)
    assert ran_BT.any() and not ran_BT.all()
    torch.testing.assert_close(
        states["routed", 0][ran_BT], states["plain", 0][ran_BT], rtol=1e-5, atol=1e-5
    )


def _last_blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    from turnout.hosts.attach import blocks_of, find_family

    views = blocks_of(model, find_family(model))
    return [view.module for view in views if view.layer == view.depth - 1]
