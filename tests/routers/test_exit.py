"""Early exit."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from hosts_table import BY_NAME, LAYERS
from transformers import PreTrainedModel

import turnout
from turnout.route import Trace
from turnout.routers.exit_head import QUERIES, ExitHead

HOST = BY_NAME["bert"]


def routed(name: str = "bert", **fields: Any) -> PreTrainedModel:
    return turnout.install(BY_NAME[name].build(), [{"kind": "exit", **fields}])


def sure(model: PreTrainedModel, place: int, label: int, bias: float = 50.0) -> None:
    """Make the head before a layer certain of a label."""
    (router,) = model.turnout.all_routers()
    with torch.no_grad():
        router.heads[place].bias[label] = bias


def run(model: PreTrainedModel, budget: float = 0.5) -> tuple[torch.Tensor, Trace]:
    name = {"BertForSequenceClassification": "bert"}.get(type(model).__name__, "roberta")
    with torch.no_grad(), model.turnout.at(budget), turnout.trace() as trace:
        return model(**BY_NAME[name].inputs()).logits, trace


def heads_of(router: Any, model: PreTrainedModel) -> list[torch.Tensor]:
    """Logits of every head in the last pass."""
    memory = model.turnout.current_flow().memory
    return [memory[(site.key, "logits")] for site in router.sites]


def ran(trace: Trace) -> list[float]:
    return [float(route.weight_BTU.mean()) for route in trace.values()]


@pytest.mark.parametrize("place", range(LAYERS))
def test_all_leave_at_the_head_that_is_sure_and_take_its_answer(place: int) -> None:
    model = routed()
    sure(model, place, label=1)
    logits, trace = run(model)
    assert ran(trace) == [1.0] * place + [0.0] * (LAYERS - place)
    assert logits.argmax(-1).tolist() == [1, 1, 1] and (logits[:, 1] > 40).all()


def test_nobody_leaves_when_no_head_is_sure() -> None:
    logits, trace = run(routed(), budget=0.9)
    assert ran(trace) == [1.0] * LAYERS
    with torch.no_grad():
        assert torch.equal(logits, HOST.build()(**HOST.inputs()).logits)


def test_who_left_stays_out() -> None:
    model = routed(cascade=False)
    sure(model, 0, label=2)  # later heads are not sure again
    _, trace = run(model)
    assert ran(trace) == [0.0] * LAYERS


def test_patience_counts_heads_that_agree() -> None:
    model = routed(criterion="patience", cascade=False)
    for place in range(LAYERS):
        sure(model, place, label=0, bias=5.0)
    _, trace = run(model, budget=0.45)  # level 0.55: a score of 1/2 is enough, one agreement
    assert ran(trace) == [1.0, 0.0, 0.0]
    _, trace = run(model, budget=0.6)  # level 0.4: two agreements
    assert ran(trace) == [1.0, 1.0, 0.0]


def test_patience_starts_again_when_heads_differ() -> None:
    model = routed(criterion="patience", cascade=False)
    for place, label in enumerate((0, 1, 1)):
        sure(model, place, label, bias=5.0)
    _, trace = run(model, budget=0.45)
    assert ran(trace) == [1.0, 1.0, 0.0]


def test_the_cascade_adds_the_earlier_answer() -> None:
    model = routed()
    (router,) = model.turnout.all_routers()
    assert router.heads[0].carry is None  # there is none before it
    sure(model, 0, label=1, bias=3.0)
    with torch.no_grad():
        router.heads[1].carry.fill_(2.0)
    model.train()
    model(**HOST.inputs())
    first, second, _ = heads_of(router, model)
    with torch.no_grad():
        router.heads[1].carry.zero_()
    torch.manual_seed(0)
    assert (second - 2.0 * first).abs().max() < 1.5  # what is left is the head's own small answer


def test_each_token_leaves_by_itself() -> None:
    model = routed("roberta", granularity="token", hidden=8)
    (router,) = model.turnout.all_routers()
    with torch.no_grad():
        router.heads[1].weight.mul_(100)
    logits, trace = run(model, budget=0.7)  # of two labels: sure from 0.7 on
    assert logits.shape == (3, 9, 2)
    second = trace["encoder.1.layer"].weight_BTU[0, :, 0]
    assert 0 < float(second.mean()) < 1
    assert (trace["encoder.2.layer"].weight_BTU[0, :, 0] <= second).all()


def test_a_sequence_of_labels_leaves_when_all_its_tokens_are_sure() -> None:
    model = routed("roberta")
    sure(model, 1, label=1)
    logits, trace = run(model, budget=0.7)
    assert ran(trace) == [1.0, 0.0, 0.0] and (logits.argmax(-1) == 1).all()


def test_a_sequence_of_labels_does_not_wait_for_tokens_that_carry_none() -> None:
    model = routed("roberta", hidden=8)
    (router,) = model.turnout.all_routers()
    with torch.no_grad():
        router.heads[1].weight.mul_(100)
    budget = 1 - 0.3 / router.ceiling  # uncalibrated: who is unsure by 0.3 or less leaves
    _, trace = run(model, budget)
    assert ran(trace)[1] > 0
    ids_BT = BY_NAME["roberta"].inputs()["input_ids"]
    logits = model.turnout.current_flow().memory[("encoder.1.layer", "logits")]
    unsure = ids_BT[logits.softmax(-1).amax(-1) < 0.7].unique()
    labels_BT = torch.where(torch.isin(ids_BT, unsure), -100, 0)
    columns = {"input_ids": ids_BT.tolist(), "labels": labels_BT.tolist()}
    router.study(datasets.Dataset.from_dict(columns))
    _, trace = run(model, budget)
    assert ran(trace)[1] == 0.0
    assert sorted(router.unlabelled.nonzero().flatten().tolist()) == unsure.tolist()
    labels_BT[:, :] = 0  # each of them is seen with a label now
    router.study(datasets.Dataset.from_dict({**columns, "labels": labels_BT.tolist()}))
    assert not router.unlabelled.any()


@pytest.mark.parametrize("pool", ["first", "mean", "last", "attend"])
def test_pools_read_real_tokens(pool: str) -> None:
    head = ExitHead(1, 0, 2, pool, cascade=False)  # type: ignore[arg-type]
    state = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = head._pooled(state, mask)
    spoilt = state.masked_fill(~mask[:, :, None], 99.0)
    assert torch.equal(found, head._pooled(spoilt, mask)), "padding was read"
    left = head._pooled(torch.tensor([[[9.0], [9.0], [4.0], [5.0]]]), mask[1:].flip(1))
    assert torch.equal(left, found[1:]), "padding on the left was read"
    if pool == "attend":  # a few weighted means, and the plain mean last
        assert found.shape == (2, QUERIES + 1) and found[:, -1].tolist() == [1.5, 4.5]
        return
    wanted = {"first": [0, 4], "mean": [1.5, 4.5], "last": [3, 5]}[pool]
    assert found.flatten().tolist() == wanted


def test_training_runs_every_layer_and_gives_every_head() -> None:
    model = routed().train()
    with turnout.trace() as trace:
        model(**HOST.inputs())
    assert ran(trace) == [1.0] * LAYERS
    (router,) = model.turnout.all_routers()
    assert [tuple(x.shape) for x in heads_of(router, model)] == [(3, 3)] * 3


@pytest.mark.parametrize("criterion", ["confidence", "learned"])
def test_heads_stay_in_float32_under_autocast(criterion: str) -> None:
    model = routed(criterion=criterion).train()
    labels = torch.zeros(3, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**HOST.inputs()).logits
    (router,) = model.turnout.all_routers()
    flow = model.turnout.current_flow()
    assert all(value.dtype == torch.float32 for value in heads_of(router, model))
    loss = router.losses(flow, logits, labels, None)["exits"]
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in router.parameters())


def test_before_calibration_a_budget_is_a_part_of_the_largest_score() -> None:
    model = routed()
    (router,) = model.turnout.all_routers()
    assert router.level(0.25) == pytest.approx(0.75 * (1 - 1 / 3))
    _, trace = run(model, budget=0.01)  # nobody can be less sure than by chance
    assert ran(trace)[0] == 0.0


def test_outputs_as_a_tuple_are_refused() -> None:
    with pytest.raises(turnout.UserError, match="return_dict=True"):
        routed()(**HOST.inputs(), return_dict=False)
