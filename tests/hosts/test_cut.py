"""A cut host runs exactly its kept blocks, and saves and loads like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hosts_table import BY_NAME, LAYERS, Host
from torch import nn

import turnout
from turnout.errors import UserError
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.cut import cuts_of, keep_layers, static_layers
from turnout.train.saving import load_host

ONE_STACK = [host for host in BY_NAME.values() if len(host.stacks) == 1]
FAMILIES = pytest.mark.parametrize("host", ONE_STACK, ids=lambda host: host.name)


def logits(model: nn.Module, host: Host) -> torch.Tensor:
    with torch.no_grad():
        return model(**host.inputs())["logits"]


@FAMILIES
@pytest.mark.parametrize("keep", [[0], [0, 2]])
def test_runs_the_kept_blocks(host: Host, keep: list[int]) -> None:
    model = host.build()
    cut = keep_layers(model, keep)
    # the definition: in a copy of the whole host the other blocks hand their input on
    skipped = [layer for layer in range(LAYERS) if layer not in keep]
    turnout.install(model, [{"kind": "random-skip", "rate": 1.0, "layers": skipped}])
    torch.testing.assert_close(logits(cut, host), logits(model, host), rtol=1e-5, atol=1e-5)


@FAMILIES
def test_saves_and_loads(host: Host, tmp_path: Path) -> None:
    cut = keep_layers(host.build(), [0, 2])
    cut.save_pretrained(tmp_path)
    again = load_host(tmp_path).eval()
    assert len(blocks_of(again, find_family(again))) == 2
    assert torch.equal(logits(again, host), logits(cut, host))


@FAMILIES
def test_leaves_the_model_as_it_was(host: Host) -> None:
    model = host.build()
    before, config = logits(model, host), model.config.to_dict()
    state = torch.get_rng_state()
    cut = keep_layers(model, [0])
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(model, host), before) and model.config.to_dict() == config


def test_generates_with_a_cache() -> None:
    cut = keep_layers(BY_NAME["llama"].build(), [0, 2])
    inputs = BY_NAME["llama"].inputs("none")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    fast = cut.generate(**inputs, use_cache=True, **options)
    assert torch.equal(fast, cut.generate(**inputs, use_cache=False, **options))


def test_keeps_the_kind_of_each_layer() -> None:
    cut = keep_layers(BY_NAME["gemma3"].build(), [0, 1])
    assert cut.config.layer_types == ["sliding_attention", "full_attention"]


def test_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(UserError, match="several stacks"):
        keep_layers(BY_NAME["t5"].build(), [0])
    with pytest.raises(UserError, match="allowed are 0 to 2"):
        keep_layers(BY_NAME["bert"].build(), [0, 3])
    with pytest.raises(UserError, match="allowed are 0 to 2"):
        keep_layers(BY_NAME["bert"].build(), [])
    with pytest.raises(UserError, match=r"attn_norm.*Keep block 0"):
        keep_layers(BY_NAME["modernbert"].build(), [1, 2])
    routed = turnout.install(BY_NAME["bert"].build(), ["random-skip"])
    with pytest.raises(UserError, match="uninstall"):
        keep_layers(routed, [0])


@pytest.mark.parametrize(
    ("name", "depth", "keep"),
    [
        ("first-1", 6, [0]),
        ("first-3", 6, [0, 1, 2]),
        ("last-2", 6, [4, 5]),
        ("every-other", 6, [0, 2, 4]),
        ("every-other", 5, [0, 2, 4]),
        ("every-other", 2, [0]),
    ],
)
def test_names(name: str, depth: int, keep: list[int]) -> None:
    assert static_layers(name, depth) == keep


@pytest.mark.parametrize("name", ["first", "first-0", "last-6", "first-7", "first--1", ""])
def test_nonsense_names(name: str) -> None:
    with pytest.raises(UserError, match=r"allowed: first-<number>|first-1 to first-5|last-1 to"):
        static_layers(name, 6)


@pytest.mark.parametrize("name", ["first-1", "last-1", "every-other"])
def test_one_layer_cannot_be_cut(name: str) -> None:
    with pytest.raises(UserError, match="the host has 1 layer"):
        static_layers(name, 1)


def test_which_cuts_a_host_allows() -> None:
    bert, t5 = BY_NAME["bert"].build(), BY_NAME["t5"].build()
    assert cuts_of(bert, None) == ["first-1", "every-other"]  # half and third of 3 layers are one
    assert cuts_of(t5, None) == cuts_of(t5, []) == []
    with pytest.raises(UserError, match="several stacks"):
        cuts_of(t5, ["first-1"])
    with pytest.raises(UserError, match=r"first-3.*3 layers"):
        cuts_of(bert, ["first-3"])
