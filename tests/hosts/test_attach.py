"""Reading a family's record on a model: blocks, leaves, prices, swapped classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hosts_table import BY_NAME, LAYERS, Host
from torch import nn

import turnout
from turnout.hosts import FAMILIES, leaves
from turnout.hosts.attach import blocks_of, find_family, price, restore, site_of, swap, swapped


def test_every_block_of_every_stack_is_found(host: Host) -> None:
    model = host.build()
    views = blocks_of(model, find_family(model))
    assert [(v.stack.name, v.layer, v.depth) for v in views] == [
        (stack, layer, LAYERS) for stack in host.stacks for layer in range(LAYERS)
    ]


def test_prices_by_hand() -> None:
    """BERT of width 32 and 48: two FLOPs for each weight of each matrix."""
    model = BY_NAME["bert"].build()
    view = blocks_of(model, FAMILIES["bert"])[0]
    square, ffn = 2 * 32 * 32, 2 * 2 * 32 * 48
    attention = price(view, "attention")
    assert (attention.row, attention.idle) == (4 * square, 2 * square)
    assert attention.pair == 4 * 32  # scores and mix: 2 FLOPs each for 32 channels
    assert (price(view, "ffn").row, price(view, "ffn").idle) == (ffn, 0)
    layer = price(view, "layer")
    assert (layer.row, layer.idle, layer.pair) == (4 * square + ffn, 2 * square, 128)
    assert layer.bytes == sum(p.numel() * 4 for p in view.module.parameters())


def test_hidden_tokens_have_no_price() -> None:
    view = blocks_of(BY_NAME["bert"].build(), FAMILIES["bert"])[1]
    site = site_of(view, "layer", hidden=True)
    assert site.key == "encoder.1.layer" and site.cost.idle == 0
    assert site.cost.row == price(view, "layer").row


def test_a_record_that_does_not_fit_names_the_leaf() -> None:
    family = FAMILIES["bert"]
    wrong = replace(family.stacks[0], ffn=leaves(delta="feed.forward"))
    with pytest.raises(turnout.UserError, match=r"block 0 .* has no 'feed\.forward'"):
        blocks_of(BY_NAME["bert"].build(), replace(family, stacks=(wrong,)))
    lost = replace(family.stacks[0], blocks="encoder.blocks")
    with pytest.raises(turnout.UserError, match=r"looked for encoder\.blocks in BertModel"):
        blocks_of(BY_NAME["bert"].build(), replace(family, stacks=(lost,)))


class _Mixin(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_one_routed_class_for_each_host_class() -> None:
    cls = swapped(nn.Identity, _Mixin)
    assert cls is swapped(nn.Identity, _Mixin) and issubclass(cls, nn.Identity)
    assert (cls.__name__, cls.__module__) == ("Identity", nn.Identity.__module__)


def test_swap_and_restore() -> None:
    module = nn.Identity()
    swap(module, _Mixin)
    assert module(torch.zeros(1)) == 1
    restore(module)
    restore(module)  # nothing to undo
    assert type(module) is nn.Identity and module(torch.zeros(1)) == 0
