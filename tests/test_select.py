"""Scores to weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from turnout import select

scores = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=6).map(torch.tensor)


@given(scores, st.floats(-4, 4))
def test_threshold_is_strict(score: Tensor, level: float) -> None:
    assert select.threshold(score, level).tolist() == [float(s > level) for s in score]
    assert not select.threshold(score, score).any()


@given(scores, st.data())
def test_top_k_takes_the_k_best(score: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(score)))
    chosen = select.top_k(score, k)
    assert chosen.sum() == k and set(chosen.tolist()) <= {0.0, 1.0}
    if 0 < k < len(score):
        assert score[chosen == 1].min() >= score[chosen == 0].max()


def test_top_k_gives_ties_to_the_first() -> None:
    assert select.top_k(torch.zeros(2, 4), 2).tolist() == [[1, 1, 0, 0]] * 2


@pytest.mark.parametrize("k", [-1, 4])
def test_top_k_refuses_an_impossible_k(k: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= k <= 3 units, got k={k}"):
        select.top_k(torch.zeros(3), k)


def test_sample_keeps_certainties_and_shares() -> None:
    uniform = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    assert select.sample(torch.ones(10_000), uniform).all()
    assert not select.sample(torch.zeros(10_000), uniform).any()
    assert select.sample(torch.full((10_000,), 0.3), uniform).mean() == pytest.approx(0.3, abs=0.02)


def test_epsilon_greedy() -> None:
    score, explore = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.1, 0.9]])
    uniform = torch.tensor([[0.5]])
    assert select.epsilon_greedy(score, 0.4, uniform, explore).tolist() == [[0, 1, 0]]
    assert select.epsilon_greedy(score, 0.6, uniform, explore).tolist() == [[0, 0, 1]]


@given(scores)
def test_soft_runs_everything(score: Tensor) -> None:
    weight = select.soft(score)
    assert (weight > 0).all() and weight.sum() == pytest.approx(1.0)


@given(scores)
def test_straight_through_has_the_hard_value_and_the_soft_gradient(score: Tensor) -> None:
    score = score.clone().requires_grad_()
    hard = select.threshold(score.detach(), 0.0)
    weight = select.straight_through(hard, score.sigmoid())
    assert torch.equal(weight.detach(), hard)
    (gradient,) = torch.autograd.grad(weight.sum(), score)
    (expected,) = torch.autograd.grad(score.sigmoid().sum(), score)
    assert torch.equal(gradient, expected)
