"""A model of several tasks: one pass, a head each, and the routing layer between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hosts_table import COMMON, GROUPED, VOCAB
from torch import Tensor

import turnout
from turnout import UserError
from turnout.hosts.tasks_model import TasksModel, add_head, with_heads
from turnout.units.task_heads import HeadConfig

HEADS = {
    "topic": HeadConfig(kind="class", width=3),
    "names": HeadConfig(kind="tag", width=5),
    "mood": HeadConfig(kind="number", width=1),
}
BACKBONES: dict[str, Any] = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**COMMON), add_pooling_layer=False),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**GROUPED)),
    "modernbert": lambda: hf.ModernBertModel(
        hf.ModernBertConfig(**COMMON, cls_token_id=1, sep_token_id=2, local_attention=4)
    ),
}
ROUTERS: dict[str, dict[str, Any]] = {
    "input": {"reads": "input"},
    "task": {"reads": "task"},
    "both": {"reads": "both", "top": 2},
    "private": {"reads": "input", "adapters": 5, "shared": 1, "private": 1},
    "token": {"reads": "both", "granularity": "token", "top": 1},
}


def model_of(name: str, heads: Any = HEADS) -> TasksModel:
    torch.manual_seed(0)
    return with_heads(BACKBONES[name](), heads).eval()


def routed(name: str, spec: dict[str, Any]) -> TasksModel:
    model = model_of(name)
    turnout.install(model, [{"kind": "mixture", **spec}])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Six texts of three lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (6, 9), generator=generator)
    lengths = torch.tensor([9, 4, 7, 9, 4, 2])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", BACKBONES)
def test_heads_read_the_backbone(name: str) -> None:
    model, inputs = model_of(name), batch()
    with torch.no_grad():
        state = model.backbone(**inputs)[0]
        found = model(**inputs, tasks=["topic", "names"]).logits
    mask = inputs["attention_mask"].float()[:, :, None]
    mean = (state * mask).sum(1) / mask.sum(1)
    last = state[torch.arange(6), inputs["attention_mask"].sum(1) - 1]
    linear: Any = model.heads["topic"].linear
    torch.testing.assert_close(found["topic"], linear(last if name == "llama" else mean))
    tags: Any = model.heads["names"].linear
    torch.testing.assert_close(found["names"], tags(state))


@pytest.mark.parametrize("spec", [None, *ROUTERS.values()], ids=["plain", *ROUTERS])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_mixed_batch_is_task_by_task(name: str, spec: dict[str, Any] | None) -> None:
    model = model_of(name) if spec is None else routed(name, spec)
    inputs, ids = batch(), torch.tensor([2, 0, 1, 0, 1, 0])
    with torch.no_grad():
        mixed = model(**inputs, task_ids=ids).logits
        together = model(**inputs, tasks=model.tasks).logits
        for place, task in enumerate(model.tasks):
            model.task = task
            alone = model(**inputs).logits
            torch.testing.assert_close(together[task], alone, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mixed[task], alone[ids == place], rtol=1e-5, atol=1e-6)
    if spec is not None:
        assert not torch.equal(model_of(name)(**inputs, tasks=["mood"]).logits["mood"], alone)


KINDS = {
    kind: HeadConfig(kind=kind, width=width)  # type: ignore[arg-type]
    for kind, width in {
        **{"class": 3, "labels": 4, "number": 1, "tag": 5, "span": 2, "vector": 8, "words": 1}
    }.items()
}


@pytest.mark.parametrize("ids", [[6, 5, 4, 3, 2, 1], [0, 3, 0, 6, 3, 0]])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_mixed_batch_holds_tasks_of_every_kind(name: str, ids: list[int]) -> None:
    model = model_of(name, KINDS)
    turnout.install(model, {"kind": "mixture", "reads": "both", "top": 2, "granularity": "token"})
    with torch.no_grad():
        for scale in model.turnout.units["output"].scale:  # type: ignore[union-attr, index]
            scale.fill_(0.5)
        mixed = model(**batch(), task_ids=torch.tensor(ids)).logits
        assert set(mixed) == {model.tasks[place] for place in ids}
        for task, found in mixed.items():
            alone = model(**batch(), tasks=[task]).logits[task]
            expected = alone[torch.tensor(ids) == model.tasks.index(task)]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_trace_holds_what_every_task_asked_for() -> None:
    model = routed("bert", {"reads": "both", "granularity": "token", "top": 1})
    inputs = batch()
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs, tasks=["topic", "names"])
    route = trace["output"]
    assert trace.shape_BT["output"] == (12, 9) and route.weight_BTU.shape == (12, 9, 4)
    valid = trace.valid_BT("output")
    assert valid[:6].sum() == 6 and valid[6:].sum() == inputs["attention_mask"].sum()
    assert ((route.weight_BTU != 0).sum(-1)[valid] == 1).all()


@pytest.mark.parametrize("spec", ROUTERS.values(), ids=ROUTERS)
def test_it_is_saved_whole(spec: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = routed("bert", spec), batch()
    model.save_pretrained(tmp_path)
    again = turnout.load(tmp_path)
    assert isinstance(again, TasksModel) and again.tasks == model.tasks
    with torch.no_grad():
        found = again(**inputs, tasks=model.tasks).logits
        for task, logits in model(**inputs, tasks=model.tasks).logits.items():
            # files begin at other addresses: the last bit of a product may differ
            torch.testing.assert_close(found[task], logits, rtol=1e-6, atol=1e-6)
    turnout.uninstall(again)
    with torch.no_grad():
        plain = model_of("bert")(**inputs, tasks=["topic"]).logits["topic"]
        assert torch.equal(again(**inputs, tasks=["topic"]).logits["topic"], plain)


def test_private_units_serve_their_task_alone() -> None:
    model, inputs = routed("bert", ROUTERS["private"]), batch()
    with torch.no_grad(), turnout.trace() as trace:
        model(**inputs, tasks=model.tasks)
    used = (trace["output"].weight_BTU[:, 0] != 0).view(3, 6, 5).all(1)
    expected = [[1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 1, 1]]
    assert used.int().tolist() == expected
    assert (trace["output"].weight_BTU[:, 0, 0] == 1).all()  # the shared one


def test_a_new_task_leaves_the_others_as_they_are() -> None:
    model, inputs = model_of("bert"), batch()
    with torch.no_grad():
        before = model(**inputs, tasks=["topic", "names"]).logits
    add_head(model, "pairs", HeadConfig(kind="vector", width=8))
    with torch.no_grad():
        after = model(**inputs, tasks=["topic", "names", "pairs"]).logits
    assert all(torch.equal(before[task], after[task]) for task in before)
    torch.testing.assert_close(after["pairs"].norm(dim=-1), torch.ones(6))


def test_what_makes_no_sense_is_refused() -> None:
    model, inputs = model_of("bert"), batch()
    with pytest.raises(UserError, match="say which is asked for"):
        model(**inputs)
    with pytest.raises(UserError, match="task 'sports' is none of this model's: topic, names"):
        model(**inputs, tasks=["sports"])
    with pytest.raises(UserError, match=r"task_ids \[3\] are not all places"):
        model(**inputs, task_ids=torch.full((6,), 3))
    with pytest.raises(UserError, match="labels are of one task"):
        model(**inputs, tasks=["topic", "names"], labels=torch.zeros(6).long())
    with pytest.raises(UserError, match="there is a task 'topic' already"):
        add_head(model, "topic", HEADS["topic"])
    with pytest.raises(UserError, match="a name of letters"):
        with_heads(BACKBONES["bert"](), {"a.b": HEADS["topic"]})
    with pytest.raises(UserError, match=r"is no turnout\.TasksModel"):
        turnout.install(hf.BertModel(hf.BertConfig(**COMMON)), [{"kind": "mixture"}])
    with pytest.raises(UserError, match="units are too few"):
        turnout.install(model, [{"kind": "mixture", "adapters": 2, "private": 1}])
    with pytest.raises(UserError, match="top 5 is more than the 4 units"):
        turnout.install(model, [{"kind": "mixture", "top": 5}])
    assert not hasattr(model, "turnout")


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("class", torch.tensor([0, 1, 2, 0, 1, 2])),
        ("labels", torch.eye(3).repeat(2, 1)),
        ("number", torch.randn(6, 3)),
        ("tag", torch.arange(54).view(6, 9) % 3),
        ("vector", torch.tensor([0, 0, 1, 1, 2, 2])),
    ],
)
def test_every_kind_of_head_learns(kind: Any, labels: Tensor) -> None:
    model = model_of("bert", {"it": HeadConfig(kind=kind, width=3)}).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(**batch(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", ["class", "labels", "number", "tag", "span", "vector"])
def test_a_teacher_of_the_same_kind_is_followed(kind: Any) -> None:
    width = 2 if kind == "span" else 3
    head: Any = model_of("bert", {"it": HeadConfig(kind=kind, width=width)}).heads["it"]
    generator = torch.Generator().manual_seed(0)
    shape = (4, 5, width) if kind in ("tag", "span") else (4, width)
    teacher = torch.randn(shape, generator=generator)
    labels = torch.zeros(4, 5).long()
    labels[:, 0] = -100
    logits = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    first = head.taught(logits, teacher, labels).detach()
    for _ in range(200):
        optimizer.zero_grad()
        head.taught(logits, teacher, labels).backward()
        optimizer.step()
    assert head.taught(logits, teacher, labels) < first
    inside = logits.detach()[:, 1:] if kind in ("tag", "span") else logits.detach()
    expected = teacher[:, 1:] if kind in ("tag", "span") else teacher
    if kind in ("class", "tag"):  # up to a constant
        inside, expected = inside.softmax(-1), expected.softmax(-1)
    elif kind == "span":
        inside, expected = inside.softmax(1), expected.softmax(1)
    torch.testing.assert_close(inside, expected, atol=0.02, rtol=0.02)
    if kind in ("tag", "span"):
        assert not logits.detach()[:, 0].any()  # outside of what counts


def test_spans_are_scored_by_both_ends() -> None:
    head: Any = model_of("bert", {"it": HeadConfig(kind="span", width=2)}).heads["it"]
    logits = torch.full((3, 4, 2), -20.0)
    logits[0, 1, 0] = logits[0, 3, 1] = logits[1, 2] = 20.0
    logits[0, 0] = 90.0  # of the question: not in the running
    marks = torch.tensor([[-100, 1, 0, 2], [-100, 0, 3, 0], [-100, 0, 0, 0]])
    assert float(head.loss(logits, marks)) < 1e-6
    marks[0] = torch.tensor([-100, 0, 1, 2])
    assert float(head.loss(logits, marks)) > 5


def test_several_tasks_take_one_pass_of_the_backbone() -> None:
    model, calls = routed("bert", ROUTERS["both"]), []
    model.backbone.register_forward_hook(lambda *args: calls.append(1))
    model(**batch(), tasks=list(HEADS))
    model(**batch(), task_ids=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert len(calls) == 2


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("reads", ["input", "task", "both"])
def test_a_fresh_mixture_uses_all_of_its_units_and_learns(reads: str, top: int) -> None:
    heads = {f"task_{n}": HeadConfig(kind="tag", width=5) for n in range(12)}
    model = model_of("bert", heads)
    torch.manual_seed(2)
    spec = {"reads": reads, "adapters": 4, "top": top, "granularity": "token"}
    turnout.install(model, [{"kind": "mixture", **spec}])
    used = torch.zeros(4)
    for name in heads:
        with turnout.trace() as trace:
            model(**batch(3), tasks=[name])
        used += (trace["output"].weight_BTU != 0).sum((0, 1))
    assert (used > 0).all()
    with torch.no_grad():
        for scale in model.turnout.units["output"].scale:  # type: ignore[union-attr, index]
            scale.fill_(0.5)
    labels = torch.randint(0, 5, (6, 9), generator=torch.Generator().manual_seed(4))
    model(**batch(), task_ids=torch.zeros(6, dtype=torch.long), labels=labels).loss.backward()
    learned = [p.grad for p in model.turnout.all_routers()[0].parameters()]  # type: ignore[union-attr, operator]
    assert all(grad is not None and bool((grad != 0).any()) for grad in learned)


def test_one_kept_unit_weighs_its_part_of_all() -> None:
    model = routed("bert", ROUTERS["token"])
    with turnout.trace() as trace:
        model(**batch(), tasks=["topic"])
    weight = trace["output"].weight_BTU
    assert ((weight != 0).sum(-1) == 1).all() and (weight.sum(-1) < 1).all()


def test_adapters_inside_are_weighed_by_the_task() -> None:
    model = model_of("bert")
    spec = {"kind": "mixture", "site": "adapter", "reads": "both", "adapters": 3}
    turnout.install(model, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.turnout.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    found = []
    for place in range(2):
        with torch.no_grad(), turnout.trace() as trace:
            logits = model(**batch(), task_ids=torch.full((6,), place)).logits
        found.append((trace["encoder.0.adapter"].weight_BTU, logits))
    (one, _), (other, _) = found
    torch.testing.assert_close(one.sum(-1), torch.ones_like(one.sum(-1)))
    assert not torch.allclose(one, other, atol=1e-2)  # first block: the texts' states are the same
