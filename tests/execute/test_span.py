"""A part of the host's forward pass."""

from __future__ import annotations

import pytest
import torch
from hosts_table import HOSTS, LAYERS, Host

import turnout
from turnout.execute.span import run_span

ONE_STACK = [host for host in HOSTS if len(host.stacks) == 1]
each = pytest.mark.parametrize("host", ONE_STACK, ids=lambda host: host.name)


@each
@pytest.mark.parametrize("at", range(LAYERS + 1))
def test_two_spans_are_the_whole_host(host: Host, at: int) -> None:
    model = turnout.install(host.build(), [{"kind": "random-skip", "rate": 0.5}])
    inputs = host.inputs()
    with torch.no_grad():
        state = run_span(model, inputs, 0, at)
        assert state.shape[0] == 3 and state.shape[2] == 32
        out = run_span(model, inputs, at, None, state).logits
        turnout.uninstall(model)
        torch.testing.assert_close(out, model(**inputs).logits, rtol=0, atol=0)


@each
def test_one_block_at_a_time(host: Host) -> None:
    model = turnout.install(host.build(), [{"kind": "random-skip", "rate": 0.5}])
    inputs = host.inputs()
    with torch.no_grad():
        state = run_span(model, inputs, 0, 0)
        for layer in range(LAYERS):
            state = run_span(model, inputs, layer, layer + 1, state)
        assert torch.equal(state, run_span(model, inputs, 0, LAYERS))
    assert model.turnout.span is None
