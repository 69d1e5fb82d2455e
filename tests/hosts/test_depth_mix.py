"""Heads that read a mix of all layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hosts_table import COMMON
from torch.nn import functional as F

import turnout
from hosts.test_tasks_model import BACKBONES, HEADS, batch
from turnout.hosts.tasks_model import TasksModel, add_head, reading_all, with_heads
from turnout.units.task_heads import HeadConfig


def mixed(name: str) -> TasksModel:
    """Three heads with weights of their own for each layer."""
    torch.manual_seed(0)
    model: Any = with_heads(BACKBONES[name](), HEADS, mixed=True).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.mix.weight.normal_()
            head.mix.scale.fill_(0.7)
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_a_head_weighs_the_normal_states_of_all_layers(name: str) -> None:
    model, inputs = mixed(name), batch()
    head: Any = model.heads["names"]
    with torch.no_grad():
        states = model.backbone(**inputs, output_hidden_states=True).hidden_states
        found = model(**inputs, tasks=["names"]).logits["names"]
    assert len(states) == model.config.num_hidden_layers + 1 == head.config.layers
    shares = head.mix.weight.softmax(0)
    wanted = sum(w * F.layer_norm(s, s.shape[-1:]) for w, s in zip(shares, states, strict=True))
    torch.testing.assert_close(found, head.linear(0.7 * wanted))


@pytest.mark.parametrize("name", BACKBONES)
def test_one_pass_answers_all_as_each_alone(name: str) -> None:
    model, inputs, ids = mixed(name), batch(), torch.tensor([2, 0, 1, 0, 1, 0])
    add_head(model, "plain", HeadConfig(kind="class", width=2))  # reads the last layer
    model.eval()
    with torch.no_grad():
        together = model(**inputs, tasks=[*reversed(model.tasks)]).logits
        several = model(**inputs, task_ids=ids).logits
        for place, task in enumerate(model.tasks):
            model.task = task
            alone = model(**inputs).logits
            torch.testing.assert_close(together[task], alone)
            if place < 3:
                torch.testing.assert_close(several[task], alone[ids == place])
            states = model(**inputs, keep=True).states
            again = model(attention_mask=inputs["attention_mask"], states=states).logits
            real = inputs["attention_mask"].bool() if alone.ndim == 3 else slice(None)
            torch.testing.assert_close(again[real], alone[real])


def test_it_is_saved_and_learns(tmp_path: Path) -> None:
    model: Any = mixed("bert")
    inputs = batch()
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    model.task = "topic"
    model(**inputs, labels=labels).loss.backward()
    head: Any = model.heads["topic"]
    assert head.mix.weight.grad.abs().min() > 0 and head.mix.scale.grad != 0
    turnout.install(model, [{"kind": "mixture", "reads": "both"}]).eval()
    model.save_pretrained(tmp_path)
    loaded: Any = turnout.load(tmp_path)
    with torch.no_grad():
        for name, logits in model(**inputs, tasks=model.tasks).logits.items():
            assert torch.equal(loaded(**inputs, tasks=[name]).logits[name], logits)


def test_routers_before_it_and_inside_of_the_backbone() -> None:
    model: Any = mixed("bert")
    inputs = batch()
    with torch.no_grad():
        before = model(**inputs, tasks=["topic"]).logits["topic"]
        turnout.install(model, [{"kind": "mixture"}, {"kind": "random-skip", "site": "ffn"}])
        model.turnout.budget, model.turnout.seed = 1.0, 0
        for scale in model.turnout.units["output"].scale:
            scale.fill_(1.0)
        after = model(**inputs, tasks=["topic"]).logits["topic"]
    assert after.shape == before.shape and not torch.allclose(before, after)


def test_words_read_the_last_layer() -> None:
    backbone: hf.PreTrainedModel = BACKBONES["bert"]()
    assert reading_all(backbone, HeadConfig(kind="words", width=1)).layers == 0
    layers: Any = COMMON["num_hidden_layers"]
    assert reading_all(backbone, HeadConfig(kind="tag", width=3)).layers == layers + 1
