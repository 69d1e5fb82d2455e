"""The routing of a model: passes, traces, masks."""

from __future__ import annotations

import pytest
import torch
from hosts_table import BY_NAME

import turnout

HOST = BY_NAME["bert"]


def test_a_trace_collects_inside_its_scope_only() -> None:
    model = turnout.install(HOST.build(), ["gate"])
    with torch.no_grad():
        with turnout.trace() as outer:
            with turnout.trace() as inner:
                model(**HOST.inputs())
            assert inner.keys() == outer.keys() and len(inner) == 3
        kept = dict(outer)
        model(**HOST.inputs())
    assert dict(outer) == kept


def test_a_trace_holds_the_last_pass() -> None:
    model = turnout.install(HOST.build(), ["gate"])
    with torch.no_grad(), turnout.trace() as trace:
        model(**HOST.inputs())
        model(**{key: value[:2] for key, value in HOST.inputs().items()})
    assert len(trace) == 3
    assert all(route.weight_BTU.shape[0] == 2 for route in trace.values())
    assert trace.valid_BT("encoder").shape == (2, 9)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "wav2vec2", "vit"])
def test_masks_by_stack(name: str) -> None:
    host = BY_NAME[name]
    model = turnout.install(host.build(), ["gate"])
    with torch.no_grad(), turnout.trace() as trace:
        model(**host.inputs())
    lengths = {stack: trace.valid_BT(stack).sum(1).tolist() for stack in host.stacks}
    if name == "t5":
        assert lengths == {"encoder": [9, 6, 9], "decoder": [7, 6, 7]}
    elif name == "vit":
        assert lengths == {"encoder": [17] * 3}  # 16 patches and the class token
    elif name == "wav2vec2":
        full, short, _ = lengths["encoder"]
        assert full == 19 and 0 < short < full  # as many frames as the convolutions leave
    else:
        assert lengths[host.stacks[0]] == [9, 6, 9]


def test_positional_inputs_are_read_as_named_ones() -> None:
    model = turnout.install(HOST.build(), ["random-skip"])
    model.turnout.seed = 1
    inputs = HOST.inputs()
    with torch.no_grad(), model.turnout.at(0.5):
        by_name = model(**inputs).logits
        by_place = model(inputs["input_ids"], inputs["attention_mask"]).logits
    assert torch.equal(by_name, by_place)


def test_a_part_of_the_model_has_no_pass() -> None:
    model = turnout.install(HOST.build(), ["gate"])
    for _ in range(2):  # not after a whole pass either, whose mask and budget would be wrong here
        for part in (model.bert, model.forward):
            with pytest.raises(turnout.UserError, match="outside of its model"):
                part(**HOST.inputs())
        model(**HOST.inputs())


def test_an_error_in_a_block_leaves_the_model_usable() -> None:
    model = turnout.install(HOST.build(), [{"kind": "random-skip", "granularity": "token"}])
    model.turnout.seed = 1
    with torch.no_grad(), model.turnout.at(0.5):
        before = model(**HOST.inputs()).logits
        hook = model.bert.encoder.layer[1].output.register_forward_hook(_fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**HOST.inputs())
        hook.remove()
        assert torch.equal(before, model(**HOST.inputs()).logits)


def _fail(*args: object) -> None:
    raise RuntimeError("on purpose")
