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
def test_what_passes_a_rank_are_the_k_best(score: Tensor, data: st.DataObject) -> None:
    count = len(score)
    k = data.draw(st.integers(0, count))
    chosen = select.threshold(select.rank(score), 1 - k / count)
    assert chosen.sum() == k
    if 0 < k < count:
        assert score[chosen == 1].min() >= score[chosen == 0].max()


def test_rank_gives_ties_to_the_first() -> None:
    assert (select.rank(torch.zeros(2, 4)) * 100).round().div(100).tolist() == [
        [1, 0.75, 0.5, 0.25]
    ] * 2


def test_rank_passes_over_what_is_not_valid() -> None:
    value = torch.tensor([[5.0, 1, 9, 7], [1, 2, 3, 4]])
    valid = torch.tensor([[True, True, False, True], [False] * 4])
    found = select.rank(value, dim=1, valid=valid)
    torch.testing.assert_close(found[0], torch.tensor([2 / 3, 1 / 3, 0, 1]), atol=0.01, rtol=0)
    assert not found[1].any()


def test_sample_keeps_certainties_and_shares() -> None:
    uniform = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    assert select.sample(torch.ones(10_000), uniform).all()
    assert not select.sample(torch.zeros(10_000), uniform).any()
    assert select.sample(torch.full((10_000,), 0.3), uniform).mean() == pytest.approx(0.3, abs=0.02)


@given(scores)
def test_straight_through_has_the_hard_value_and_the_soft_gradient(score: Tensor) -> None:
    score = score.clone().requires_grad_()
    hard = select.threshold(score.detach(), 0.0)
    weight = select.straight_through(hard, score.sigmoid())
    assert torch.equal(weight.detach(), hard)
    (gradient,) = torch.autograd.grad(weight.sum(), score)
    (expected,) = torch.autograd.grad(score.sigmoid().sum(), score)
    assert torch.equal(gradient, expected)
