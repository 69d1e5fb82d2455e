"""Shorter sequences: what is left of a batch, and how it comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.execute.scope import reference_execution
from turnout.execute.shorten import lengthen, short_of, shorten
from turnout.hosts.attach import blocks_of, find_family

# nine places for eight tokens
ACTIVE = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0]]).bool()


def test_what_is_left_stands_in_order_and_comes_back() -> None:
    short = short_of(ACTIVE)
    assert short is not None and not short.full
    assert short.place_BS[0].tolist() == [0, 2, 4] and short.place_BS[1, :2].tolist() == [1, 5]
    x = torch.arange(18.0).view(3, 6, 1)
    mask = torch.ones(3, 1, 6, 6, dtype=torch.bool).tril()
    rotations = (torch.arange(6.0).view(1, 6, 1),)
    made = shorten(short, x, (mask,), {"position_embeddings": rotations})
    assert made is not None
    x_short, (own,), kwargs = made
    assert x_short[0].flatten().tolist() == [0, 2, 4] and x_short[1, :2].flatten().tolist() == [
        7,
        11,
    ]
    assert kwargs["position_embeddings"][0][0].flatten().tolist() == [0, 2, 4]
    assert own[1, 0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    back = lengthen(short, x_short * 0 - 1, x)
    assert (back[ACTIVE] == -1).all() and back[~ACTIVE].equal(x[~ACTIVE])


def test_a_mask_may_be_one_row_for_all_queries() -> None:
    short = short_of(ACTIVE)
    assert short is not None
    hides_first = torch.zeros(3, 1, 1, 6)
    hides_first[..., 0] = torch.finfo(torch.float32).min
    made = shorten(short, torch.zeros(3, 6, 1), (hides_first,), {"count": torch.tensor(3)})
    assert made is not None
    assert (made[1][0] < 0)[:, 0].tolist() == [
        [[True, False, False]] * 3,
        [[False, False, True]] * 2 + [[False, False, True]],
        [[True, False, False]] * 3,
    ]


def test_batches_that_would_be_padding_are_packed_by_leaves() -> None:
    assert short_of(torch.ones(2, 4).bool()) is None  # nothing to remove
    assert short_of(torch.zeros(2, 4).bool()) is None  # nothing left
    uneven = torch.zeros(4, 8).bool()
    uneven[0, :6] = uneven[1:, 0] = True
    assert short_of(uneven) is None


def test_blocks_that_are_told_more_of_the_tokens_are_packed_by_leaves() -> None:
    short = short_of(ACTIVE)
    assert short is not None
    x = torch.zeros(3, 6, 1)
    assert shorten(short, x, (None, torch.zeros(3, 6)), {}) is None
    assert shorten(short, x, (torch.zeros(3, 6),), {}) is None


@pytest.mark.parametrize("name", ["bert", "modernbert", "vit"])
def test_shorter_sequences_are_the_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients, and that the blocks did run on fewer tokens."""
    host, seen = BY_NAME[name], set()
    model: Any = host.build().double()
    block = type(blocks_of(model, find_family(model))[0].module)
    router = {"kind": "token-attention", "keep": "top-k", "visible": False}
    turnout.install(model, [router]).double().eval()
    model.turnout.budget = 0.5
    plain = block.forward

    def forward(
        self: object, hidden_states: torch.Tensor, *args: object, **kwargs: object
    ) -> object:
        seen.add(hidden_states.shape[1])
        return plain(self, hidden_states, *args, **kwargs)

    inputs = host.inputs("none")
    monkeypatch.setattr(block, "forward", forward)
    out = model(**inputs)["logits"]
    assert min(seen) < max(model.turnout.current_flow().trace.shape_BT.values())[1]
    out.square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with reference_execution():
        expected = model(**inputs)["logits"]
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected)
    for n, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[n], p.grad)
