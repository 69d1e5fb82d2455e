"""Numbers of rows are rounded up in bf16 on a CPU: more rows are computed, nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.execute import grouped, rows
from turnout.execute.narrow import _index_of

SPECS: dict[str, dict[str, Any]] = {
    "layer": {"granularity": "token"},
    "attention": {"site": "attention", "granularity": "token"},
    "ffn": {"site": "ffn", "granularity": "token"},
    "head-sequence": {"site": "head"},
    "head-token": {"site": "head", "granularity": "token"},
    "expert": {"site": "expert", "granularity": "token", "experts": 4},
    "adapter": {"site": "adapter", "granularity": "token", "targets": ["query", "in", "out"]},
    "bottleneck": {"site": "adapter", "form": "bottleneck", "granularity": "token"},
}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that matter for batches of a few rows."""
    monkeypatch.setattr(rows, "STEP", 4)


def routed(name: str, spec: dict[str, Any]) -> Any:
    model = turnout.install(BY_NAME[name].build(), [{"kind": "gate", "open": 0.1, **spec}])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.turnout.budget = 0.5
    return model.to(torch.bfloat16)


LEARN = ("head-sequence", "head-token", "expert")  # rounded in training too
CASES = [(key, False) for key in SPECS] + [(key, True) for key in LEARN]


@pytest.mark.parametrize(("key", "grad"), CASES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_answers_stay(name: str, key: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = routed(name, SPECS[key]), BY_NAME[name].inputs()

    def answers() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        with torch.set_grad_enabled(grad):
            logits = model(**inputs)["logits"].float()
        if grad:
            logits.square().mean().backward()
        return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    seen: list[int] = []
    up = rows.round_up
    monkeypatch.setattr(rows, "round_up", lambda n: seen.append(n) or up(n))
    monkeypatch.setattr(grouped, "round_up", rows.round_up)
    logits, grads = answers()
    assert seen, "nothing was rounded"
    monkeypatch.setattr(rows, "STEP", 1)
    plain, expected = answers()
    torch.testing.assert_close(logits, plain, rtol=0.05, atol=0.05)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.02)


def test_an_index_is_rounded_in_inference_alone() -> None:
    x = torch.zeros(2, 10, 3, dtype=torch.bfloat16)
    active = torch.zeros(2, 10, dtype=torch.bool)
    active[0, 1:7] = True
    with torch.no_grad():
        assert _index_of(active, x).tolist() == [1, 2, 3, 4, 5, 6, 6, 6]
        assert _index_of(active, x.float()).tolist() == [1, 2, 3, 4, 5, 6]
        assert _index_of(active & False, x).tolist() == []
        active[:, :9] = True  # 18 of 20 rows: rounded up it would be taken for all of them
        assert len(_index_of(active, x)) == 18
    active[:, 3:] = False
    assert len(_index_of(active, x)) == 6


def test_groups_write_over_the_surplus_of_those_before() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(21, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(5, 6, 8, generator=generator).bfloat16().requires_grad_()
    counts = (3, 0, 7, 1, 10)
    assert [(a, b) for _, a, b in grouped._windows(counts, x)] == [
        (0, 4),
        (3, 11),
        (10, 14),
        (11, 21),
    ]
    out = grouped.loop(x, weight, counts)
    grads = torch.autograd.grad(out.float().square().sum(), (x, weight))
    parts = zip(x.split(counts), weight, strict=True)
    slow = torch.cat([part @ matrix.t() for part, matrix in parts])
    expected = torch.autograd.grad(slow.float().square().sum(), (x, weight))
    torch.testing.assert_close(out, slow)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)
