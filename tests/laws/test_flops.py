"""Hosts, law: the FLOPs that turnout counts are the FLOPs that ran."""

from __future__ import annotations

import pytest
import torch
from fixed_router import FixedConfig
from hosts_table import HOSTS, Host
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

import turnout
from turnout.cost import dense_flops_B, trace_flops, trace_share
from turnout.execute.shorten import short_of
from turnout.route import Route

# What a decoder block does for the encoder's tokens (keys and values of cross-attention, and its
# pairs) is in no site's cost: a sequence that skips the whole block saves more than is counted, and
# with a cache so does a batch that skips it whole.
CROSS = ("bart", "marian", "pair")

CASES = [(host, False) for host in HOSTS] + [(host, True) for host in HOSTS if host.causal]
cases = pytest.mark.parametrize(
    "host, cache", CASES, ids=[host.name + "-cache" * cache for host, cache in CASES]
)


def flops_that_run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> int:
    """FLOPs of all matrix products of one pass, counted by torch."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)  # the fused kernel's products are not counted on a CPU
    return counter.get_total_flops()


def saved(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """FLOPs that a routed pass saved: as turnout counts them, as torch counted them."""
    with turnout.trace() as trace:
        routed = flops_that_run(model, inputs)
    sites = [(route.site, trace.valid_BT(route.site.stack)) for route in trace.values()]
    dense = sum(float(dense_flops_B(site, valid).sum()) for site, valid in sites)
    counted = dense - float(trace_flops(trace))
    turnout.uninstall(model)
    return counted, flops_that_run(model, inputs) - routed


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("site", ["layer", "attention", "ffn", "head", "expert"])
@cases
def test_counted_savings_are_real(host: Host, site: str, granularity: str, cache: bool) -> None:
    host.has(site)
    model = host.build("sdpa" if site == "head" else "eager")
    model.config.use_cache = cache
    model.config.get_text_config().use_cache = cache
    turnout.install(model, [FixedConfig(site=site, granularity=granularity)])
    counted, real = saved(model, host.inputs("none"))
    assert counted > 0
    if site == "layer" and granularity != "token" and host.name in CROSS:
        assert real > counted  # see CROSS
    else:
        assert real == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("form", ["lora", "bottleneck"])
def test_adapters_cost_what_they_do(host: Host, form: str, granularity: str) -> None:
    """They are beside the host, so they are compared with themselves: all, and half of them."""
    inputs, found = host.inputs("none"), []
    for keep in (1.0, 0.5):
        router = FixedConfig(site="adapter", form=form, rank=2, granularity=granularity, keep=keep)
        model = turnout.install(host.build("eager"), [router])
        with turnout.trace() as trace:
            real = flops_that_run(model, inputs)
        found.append((float(trace_flops(trace)), real))
    (counted, real), (counted_half, real_half) = found
    assert counted_half < counted
    assert real - real_half == pytest.approx(counted - counted_half, rel=1e-6)


@pytest.mark.parametrize("site", ["layer", "attention"])
@pytest.mark.parametrize(
    "host", [host for host in HOSTS if host.hideable], ids=lambda host: host.name
)
def test_hidden_tokens_cost_nothing(host: Host, site: str) -> None:
    router = FixedConfig(site=site, granularity="token", visible=False)
    model, inputs = turnout.install(host.build("eager"), [router]), host.inputs("none")
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs)
    shorter = sum(map(less_by_shortening, trace.values())) if site == "layer" else 0.0
    counted, real = saved(model, inputs)
    assert real == pytest.approx(counted + shorter, rel=1e-6)


def less_by_shortening(route: Route) -> float:
    """What a block on shorter sequences saves of the counted work: attention between fewer tokens,
    less the padding."""
    active_BT = route.active_BT
    short, (batch, length) = short_of(active_BT), active_BT.shape
    if short is None:
        return 0.0
    places, cost = short.place_BS.shape[1], route.site.whole
    attend = int(active_BT.any(1).sum())
    pairs = attend * length**2 - batch * places**2
    return cost.pair * pairs - cost.row * (batch * places - int(active_BT.sum()))


def test_everything_and_nothing(host: Host) -> None:
    """The share is 1 when all runs, and what remains when nothing runs is the work that ran."""
    inputs = host.inputs("none")
    for keep in (1.0, 0.0):
        model = turnout.install(host.build("eager"), [FixedConfig(keep=keep)])
        with torch.no_grad(), turnout.trace() as trace:
            model(**inputs)
        share = float(trace_share(trace))
        assert share == 1.0 if keep else share < 0.5
        counted, real = saved(model, inputs)
        if host.name in CROSS and not keep:
            assert real > counted
        else:
            assert real == pytest.approx(counted, rel=1e-6)
