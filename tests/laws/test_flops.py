"""Hosts, law: the FLOPs that turnout counts are the FLOPs that ran (and those it saved, were saved)."""

from __future__ import annotations

import pytest
import torch
from fixed_router import FixedConfig
from hosts_table import Host
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

import turnout
from turnout.cost import dense_flops_B, trace_flops


def flops_that_run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> int:
    """FLOPs of all matrix products of one pass, counted by torch."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("site", ["layer", "attention", "ffn"])
def test_counted_savings_are_real(host: Host, site: str, granularity: str) -> None:
    inputs = host.inputs("none")
    dense = flops_that_run(host.build("eager"), inputs)
    model = turnout.install(
        host.build("eager"), [FixedConfig(site=site, granularity=granularity)]
    )
    with turnout.trace() as trace:
        routed = flops_that_run(model, inputs)
    all_run = sum(
        float(dense_flops_B(r.site, trace.valid_BT(r.site.stack)).sum()) for r in trace.values()
    )
    counted = all_run - float(trace_flops(trace))
    assert counted > 0
    assert dense - routed == pytest.approx(counted, rel=1e-6)
