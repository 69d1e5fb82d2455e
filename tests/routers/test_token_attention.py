"""Tokens by received attention: how many each layer keeps."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.routers.token_attention import shrinking


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_layers_keep_the_same_part_of_what_was_left(layers: int) -> None:
    share = torch.tensor([0.0, 0.1, 0.4, 0.9, 1.0, 2.0])
    part = shrinking(share, layers)
    mean = torch.stack([part**n for n in range(1, layers + 1)]).mean(0)
    torch.testing.assert_close(mean, share.clamp(0, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("pace", ["geometric", "even"])
def test_later_layers_keep_fewer_tokens_unless_the_pace_is_even(pace: str) -> None:
    host = BY_NAME["vit"]  # 17 tokens
    router = {"kind": "token-attention", "keep": "top-k", "pace": pace}
    model = turnout.install(host.build(), [router]).eval()
    model.turnout.budget = 0.5
    with torch.no_grad(), turnout.trace() as trace:
        model(**host.inputs("none"))
    kept = [int(route.active_BT[0].sum()) for route in trace.values()]
    assert kept == sorted(kept, reverse=True) and kept[-1] >= 1
    assert (kept[0] > kept[-1] + 1) == (pace == "geometric")  # the first one comes on top
    assert abs(sum(kept) / len(kept) / 17 - 0.5) < 0.06
