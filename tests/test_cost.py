"""FLOPs of routes and traces, against sums made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turnout.cost import dense_flops_B, route_flops_B, trace_bytes, trace_flops, trace_share
from turnout.route import Route, Site, Trace, UnitCost

COST = UnitCost(row=100.0, idle=10.0, pair=1.0, bytes=400)
SITE = Site("encoder.0.layer", "layer", "encoder", 0, 1, 1, COST)
VALID = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()


def route(*rows: list[float]) -> Route:
    return Route(SITE, torch.tensor(rows)[:, :, None])


def trace_of(one: Route, mask_BT: Tensor | None = VALID) -> Trace:
    trace = Trace()
    trace[SITE.key] = one
    trace.mask_BT["encoder"], trace.shape_BT["encoder"] = mask_BT, (2, 4)
    return trace


def test_tokens_that_run_are_rows_and_the_others_idle() -> None:
    token = route([1, 0, 0, 1], [1, 1, 0, 1])  # the last one is padding
    assert route_flops_B(token, VALID).tolist() == [200 + 20 + 16, 200 + 10 + 9]


def test_a_sequence_that_skips_costs_nothing_unless_it_is_entered() -> None:
    sequence = route([0], [1])
    assert route_flops_B(sequence, VALID).tolist() == [0, 300 + 9]
    assert route_flops_B(sequence, VALID, entered=True).tolist() == [40 + 16, 300 + 9]
    trace = trace_of(sequence)
    assert float(trace_flops(trace)) == 309
    trace.entered.add(SITE.key)
    assert float(trace_flops(trace)) == 365


def test_everything_is_dense() -> None:
    dense = dense_flops_B(SITE, VALID)
    assert dense.tolist() == [400 + 16, 300 + 9]
    assert torch.equal(dense, route_flops_B(route([1], [1]), VALID))
    assert float(trace_share(trace_of(route([1], [1])))) == 1.0


def test_the_size_of_a_weight_does_not_matter() -> None:
    heavy, light = route([2.5], [0.0]), route([0.1], [0.0])
    assert torch.equal(route_flops_B(heavy, VALID), route_flops_B(light, VALID))


def test_bytes_are_read_once_for_each_unit_that_runs() -> None:
    assert trace_bytes(trace_of(route([1], [1]))) == 400
    assert trace_bytes(trace_of(route([0, 0, 0, 0], [0, 0.5, 0, 0]))) == 400
    assert trace_bytes(trace_of(route([0], [0]))) == 0


def test_units_add_up() -> None:
    site = Site("encoder.0.ffn", "ffn", "encoder", 0, 1, 2, UnitCost(row=7.0))
    both = Route(site, torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]]))
    assert route_flops_B(both, VALID).tolist() == [56, 21]
    assert dense_flops_B(site, VALID).tolist() == [56, 42]


def test_more_weight_is_more_work_for_the_gradient() -> None:
    weight = torch.tensor([[[1.0], [0.0], [1.0], [1.0]]] * 2, requires_grad=True)
    trace_share(trace_of(Route(SITE, weight))).backward()
    assert weight.grad is not None
    assert (weight.grad[VALID] > 0).all() and (weight.grad[~VALID] == 0).all()


def test_no_mask_means_that_all_tokens_are_real() -> None:
    trace = trace_of(route([1], [0]), mask_BT=None)
    assert trace.valid_BT("encoder").tolist() == [[True] * 4] * 2
    assert float(trace_share(trace)) == 0.5


def test_an_empty_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no route"):
        trace_share(Trace())
