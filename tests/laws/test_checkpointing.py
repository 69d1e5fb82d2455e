"""Hosts, law: activation checkpointing changes no route, no loss and no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixed_router import FixedConfig
from hosts_table import BY_NAME, Host, output_mask
from torch import Tensor
from transformers import PreTrainedModel

import turnout
from turnout.cost import trace_share
from turnout.execute import grouped

GATE = {"kind": "gate", "open": 0.0}


def ready(host: Host, *routers: Any) -> PreTrainedModel:
    """A routed host in training, without a cache: checkpointing switches caches off."""
    model = turnout.install(host.build(), routers).train()
    for module in model.modules():  # T5's decoder has a config of its own
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False
    return model


def step(
    model: PreTrainedModel, inputs: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Routes, loss (outputs plus a share of the work) and gradients of one training step."""
    torch.manual_seed(5)
    model.zero_grad()
    with turnout.trace() as trace:
        logits = model(**inputs).logits
    loss = (logits * output_mask(inputs, logits)).square().mean() + trace_share(trace)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {key: route.weight_BTU.detach() for key, route in trace.items()}, loss.detach(), grads


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("site", ["layer", "attention", "ffn", "head", "expert", "adapter"])
def test_same_routes_losses_and_gradients(host: Host, site: str, granularity: str) -> None:
    host.has(site)
    model = ready(host, dict(GATE, site=site, granularity=granularity))
    with torch.no_grad():  # fresh adapters change nothing, and half of their gradients are 0
        for parameter in model.turnout.units.parameters():  # type: ignore[union-attr]
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    routes, loss, grads = step(model, host.inputs())
    model.activation_checkpointing_enable()
    routes_2, loss_2, grads_2 = step(model, host.inputs())
    share = torch.cat([weight.flatten() for weight in routes.values()]).mean()
    assert 0 < share < 1
    assert routes.keys() == routes_2.keys()
    assert all(torch.equal(routes[key], routes_2[key]) for key in routes)
    torch.testing.assert_close(loss, loss_2)
    assert grads.keys() == grads_2.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, grads_2[name], rtol=1e-4, atol=1e-6, msg=name)
    own = [name for name in grads_2 if name.startswith("turnout.")]
    assert own and all(grads_2[name].abs().sum() > 0 for name in own)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_products_of_experts_are_timed_out_of_sight(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first products of a kind are timed inside of the block that is run twice."""
    host, results = BY_NAME[name], []
    for on in (True, False):
        monkeypatch.setattr(grouped, "_chosen", {})
        monkeypatch.setattr(grouped, "FEW", 0)
        model = ready(host, dict(GATE, site="expert", granularity="token", experts=4))
        if on:
            model.activation_checkpointing_enable()
        results.append(step(model, host.inputs()))
        assert grouped._chosen, "nothing was timed: a vacuous test"
    torch.testing.assert_close(results[0][1], results[1][1])
    for parameter, grad in results[0][2].items():
        torch.testing.assert_close(grad, results[1][2][parameter], rtol=1e-4, atol=1e-6)


def test_two_passes_before_one_backward(host: Host) -> None:
    """A loss of two passes re-runs the blocks of the first one after the second one began."""
    model = ready(host, dict(GATE, granularity="token", open=0.0))
    results = []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable()
        torch.manual_seed(5)
        model.zero_grad()
        one, two = model(**host.inputs()).logits, model(**host.inputs()).logits
        (one.square().mean() + two.sum()).backward()
        results.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    for name, grad in results[0].items():
        torch.testing.assert_close(grad, results[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_weights_that_a_router_holds(host: Host) -> None:
    """Fixed soft weights: the gradient of each weight, with checkpointing and without."""
    model = ready(host, FixedConfig(granularity="token", soft=True))
    _, loss, grads = step(model, host.inputs())
    model.activation_checkpointing_enable()
    _, loss_2, grads_2 = step(model, host.inputs())
    name = "turnout.routers.0_fixed.weight"
    torch.testing.assert_close(loss, loss_2)
    torch.testing.assert_close(grads[name], grads_2[name])
    assert grads[name].abs().sum() > 0
