"""Reading a family's record on a model: blocks and leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hosts_table import BY_NAME, LAYERS, Host

import turnout
from turnout.hosts import FAMILIES, leaves
from turnout.hosts.attach import blocks_of, find_family


def test_every_block_of_every_stack_is_found(host: Host) -> None:
    model = host.build()
    views = blocks_of(model, find_family(model))
    assert [(v.stack.name, v.layer, v.depth) for v in views] == [
        (stack, layer, LAYERS) for stack in host.stacks for layer in range(LAYERS)
    ]


def test_a_record_that_does_not_fit_names_the_leaf() -> None:
    family = FAMILIES["bert"]
    wrong = replace(family.stacks[0], ffn=leaves(delta="feed.forward"))
    with pytest.raises(turnout.UserError, match=r"block 0 .* has no 'feed\.forward'"):
        blocks_of(BY_NAME["bert"].build(), replace(family, stacks=(wrong,)))
    lost = replace(family.stacks[0], blocks="encoder.blocks")
    with pytest.raises(turnout.UserError, match=r"looked for encoder\.blocks in BertModel"):
        blocks_of(BY_NAME["bert"].build(), replace(family, stacks=(lost,)))
