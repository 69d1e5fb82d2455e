"""Routed blocks: narrowing arguments to sequences, hiding tokens, T5's position biases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fixed_router import FixedConfig, fixed_router
from hosts_table import BY_NAME

import turnout
from turnout.execute.narrow import hide_keys, take


@pytest.fixture(autouse=True, scope="module")
def _fixed_router() -> Iterator[None]:
    with fixed_router():
        yield


def test_take_narrows_what_has_the_batch_first() -> None:
    keep = torch.tensor([0, 2])
    value = {"mask": torch.arange(3.0).view(3, 1), "rope": (torch.ones(1, 5), torch.arange(3))}
    out = take(value, keep, 3)
    assert out["mask"].flatten().tolist() == [0, 2]
    assert out["rope"][0].shape == (1, 5) and out["rope"][1].tolist() == [0, 2]
    assert take("text", keep, 3) == "text" and take(None, keep, 3) is None
    assert take(torch.tensor(4), keep, 3).ndim == 0


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("mask", [None, torch.ones(2, 1, 3, 3).bool(), torch.zeros(2, 1, 3, 3)])
def test_hide_keys_closes_columns(mask: torch.Tensor | None, by_name: bool) -> None:
    active, x = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool(), torch.zeros(2, 3, 4)
    given = ((), {"attention_mask": mask}) if by_name else ((mask,), {})
    args, kwargs = hide_keys(*given, active, x)
    found = kwargs["attention_mask"] if by_name else args[0]
    is_open = found if found.dtype == torch.bool else found == 0
    assert torch.equal(is_open, active[:, None, None, :].expand(2, 1, 3, 3))


def test_skipping_the_first_t5_block_keeps_the_position_biases() -> None:
    """Block 0 owns the bias that all others use: a skipped one must still hand it on."""
    host = BY_NAME["t5"]
    model = turnout.install(host.build(), [FixedConfig(keep=0.0, layers=(0,))])
    biases: dict[str, list[torch.Tensor]] = {"plain": [], "routed": []}
    for name, some in (("plain", host.build()), ("routed", model)):
        for stack in (some.encoder, some.decoder):
            stack.block[2].register_forward_hook(
                lambda m, a, out, n=name: biases[n].append(out[1].detach())
            )
        with torch.no_grad():
            some(**host.inputs())
    assert len(biases["plain"]) == 2
    for plain, routed in zip(biases["plain"], biases["routed"], strict=True):
        assert torch.equal(plain, routed) and routed.abs().max() > 0


def test_a_batch_of_one() -> None:
    host = BY_NAME["llama"]
    one = {key: value[:1] for key, value in host.inputs().items()}
    for keep in (0.0, 0.5, 1.0):
        model = turnout.install(host.build(), [FixedConfig(keep=keep, granularity="token")])
        with torch.no_grad():
            assert model(**one).logits.isfinite().all()


def test_skipped_rows_are_not_computed() -> None:
    """The number of rows that reach the feed-forward network is the number that the route names."""
    host = BY_NAME["bert"]
    model = turnout.install(host.build(), [FixedConfig(site="ffn", granularity="token")])
    rows = []
    for layer in model.bert.encoder.layer:
        layer.intermediate.dense.register_forward_hook(lambda m, a, out: rows.append(len(a[0])))
    with torch.no_grad(), turnout.trace() as trace:
        model(**host.inputs())
    valid = trace.valid_BT("encoder")
    assert rows == [int((route.active_BT & valid).sum()) for route in trace.values()]
