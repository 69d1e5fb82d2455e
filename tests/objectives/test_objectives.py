"""Laws of the objectives: minimal where theory says so, a gradient of the right sign elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turnout import objectives
from turnout.route import Route, Site, Trace, UnitCost


def site(layer: int) -> Site:
    return Site(f"encoder.{layer}.layer", "layer", "encoder", layer, 3, 1, UnitCost(row=2.0))


def trace_of(*weights_BT1: Tensor, log_prob: Tensor | None = None) -> Trace:
    trace = Trace()
    for layer, weight in enumerate(weights_BT1):
        trace[site(layer).key] = Route(site(layer), weight, log_prob_BT=log_prob)
    trace.shape_BT["encoder"] = (weights_BT1[0].shape[0], max(w.shape[1] for w in weights_BT1))
    trace.mask_BT["encoder"] = None
    return trace


@pytest.mark.parametrize(("share", "sign"), [(0.8, 1), (0.5, 0), (0.2, -1)])
def test_budget_pulls_towards_its_target(share: float, sign: int) -> None:
    spent = torch.tensor(share, requires_grad=True)
    loss = objectives.budget(spent, 0.5)
    loss.backward()
    assert loss >= 0 and spent.grad is not None
    assert torch.sign(spent.grad) == sign


def test_balance_is_least_when_units_are_used_alike() -> None:
    even = objectives.balance(trace_of(torch.full((4, 5, 1), 0.5), torch.full((4, 5, 1), 0.5)))
    assert even == pytest.approx(0.0, abs=1e-12)
    much = torch.full((4, 5, 1), 0.9, requires_grad=True)
    little = torch.full((4, 5, 1), 0.1, requires_grad=True)
    loss = objectives.balance(trace_of(much, little))
    loss.backward()
    assert loss > 0.1
    assert much.grad is not None and bool((much.grad > 0).all())
    assert little.grad is not None and bool((little.grad < 0).all())


def test_balance_does_not_change_with_scale() -> None:
    draw = torch.rand(4, 5, 1)
    one = objectives.balance(trace_of(draw, draw * 0.5))
    assert objectives.balance(trace_of(draw * 3, draw * 1.5)) == pytest.approx(one.item())


def test_balance_compares_units_of_one_kind() -> None:
    """A layer that nearly always runs beside experts of which two in eight do: both even."""
    trace = trace_of(torch.full((4, 5, 1), 0.9), torch.full((4, 5, 1), 0.9))
    for layer in range(2):
        place = Site(f"encoder.{layer}.expert", "expert", "encoder", layer, 3, 8, UnitCost(row=1.0))
        trace[place.key] = Route(place, torch.full((4, 5, 8), 0.25))
    assert objectives.balance(trace) == pytest.approx(0.0, abs=1e-9)


def test_balance_passes_over_padding() -> None:
    weights = torch.rand(2, 4, 1), torch.rand(2, 4, 1)
    trace, spoilt = trace_of(*weights), trace_of(*(w.clone() for w in weights))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    for each in (trace, spoilt):
        each.mask_BT["encoder"] = mask
    for route in spoilt.values():
        route.weight_BTU[0, 3] = 100.0
    assert objectives.balance(trace) == pytest.approx(objectives.balance(spoilt).item())


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 4)])
def test_distill_is_least_where_the_answers_agree(shape: tuple[int, ...]) -> None:
    teacher = torch.randn(shape)
    assert objectives.distill(teacher + 7.0, teacher) == pytest.approx(0.0, abs=1e-5)
    student = torch.randn(shape, requires_grad=True)
    before = objectives.distill(student, teacher)
    before.backward()
    assert student.grad is not None
    after = objectives.distill(student.detach() - 0.5 * student.grad, teacher)
    assert 0 < after < before


def test_distill_passes_over_what_does_not_count() -> None:
    teacher, student = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    keep = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    loss = objectives.distill(student, teacher, keep)
    student[~keep] = 50.0
    assert objectives.distill(student, teacher, keep) == pytest.approx(loss.item())
    assert objectives.distill(student, teacher, torch.zeros(2, 3).bool()) == 0


def test_hidden_states_are_compared_by_direction() -> None:
    state = torch.randn(2, 3, 8)
    assert objectives.distill_hidden(state * 5 + 1, state) == pytest.approx(0.0, abs=1e-4)
    assert objectives.distill_hidden(torch.randn(2, 3, 8), state) > 0.1


def test_heads_learn_from_labels_and_from_the_last_layer() -> None:
    labels = torch.tensor([0, 1, 2])
    heads = [torch.zeros(3, 3, requires_grad=True) for _ in range(2)]
    final = (torch.eye(3) * 4).requires_grad_()
    loss = objectives.exits(heads, final, labels)
    loss.backward()
    assert final.grad is None, "the teacher must not be taught by its pupils"
    for head in heads:
        assert head.grad is not None
        assert bool((head.grad.diagonal() < 0).all()), "the right label must gain"
    right = [torch.eye(3) * 4 for _ in range(2)]
    assert objectives.exits(right, final, labels) < loss


def test_ignored_words_teach_nothing() -> None:
    labels = torch.tensor([[0, -100, 1]])
    head = torch.zeros(1, 3, 2, requires_grad=True)
    objectives.exits([head], torch.randn(1, 3, 2), labels).backward()
    assert head.grad is not None
    assert not head.grad[0, 1].any() and head.grad[0, 0].any()


def test_the_probe_learns_whether_a_head_differs() -> None:
    heads = [torch.tensor([[2.0, 0.0], [0.0, 2.0]])]
    final = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    score = torch.full((2,), 0.5, requires_grad=True)
    objectives.exits(heads, final, None, probes=[score]).backward()
    assert score.grad is not None
    assert score.grad[0] > 0 > score.grad[1], "agrees: lower the score; differs: raise it"


def test_paths_with_a_low_loss_become_likelier() -> None:
    log_prob = torch.zeros(3, 1, requires_grad=True)
    trace = trace_of(torch.ones(3, 1, 1), log_prob=log_prob)
    loss_B = torch.tensor([0.1, 1.0, 1.9], requires_grad=True)
    objectives.score_function(trace, loss_B).backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0] < 0 < log_prob.grad[2] and log_prob.grad[1].abs() < 1e-6
    assert loss_B.grad is None


def test_the_z_loss_pulls_large_logits_down_most() -> None:
    logit = torch.tensor([-20.0, 0.0, 3.0, 9.0], requires_grad=True)
    objectives.z_loss(logit).backward()
    assert logit.grad is not None and (logit.grad.diff() > 0).all() and (logit.grad >= 0).all()
    assert objectives.z_loss(torch.full((3,), -30.0)) == pytest.approx(0.0, abs=1e-6)


def test_units_of_one_site_are_to_be_used_alike() -> None:
    weight = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(4, 5, 4).clone().requires_grad_()
    trace = Trace()
    place = Site("encoder.0.expert", "expert", "encoder", 0, 3, 4, UnitCost(row=2.0))
    trace[place.key] = Route(place, weight)
    trace.shape_BT["encoder"], trace.mask_BT["encoder"] = (4, 5), None
    loss = objectives.balance(trace)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0675 / 0.0625)  # variance over squared mean
    assert weight.grad is not None
    assert bool((weight.grad[..., 0] > 0).all() and (weight.grad[..., 1:] < 0).all())
