"""Laws of the objectives of noise: the divergence from the prior, and of two passes."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from turnout import objectives


@pytest.mark.parametrize("prior", [0.1, 1.0])
def test_the_divergence_is_that_of_two_normals(prior: float) -> None:
    mean, sigma = torch.randn(20), torch.rand(20) + 0.01
    wanted = kl_divergence(Normal(mean, sigma), Normal(0.0, prior))
    torch.testing.assert_close(objectives.gaussian_kl(mean**2, sigma, prior), wanted)
    at_prior = objectives.gaussian_kl(torch.zeros(2), torch.full((2,), prior), prior)
    assert at_prior.abs().max() < 1e-6


def test_it_is_finite_far_out_and_pulls_to_the_prior() -> None:
    sigma = torch.tensor([1e-8, 0.05, 0.1, 0.5, 1e4], requires_grad=True)
    found = objectives.gaussian_kl(torch.zeros(5), sigma, 0.1)
    objectives.kl([found]).backward()
    assert bool(found.isfinite().all()) and sigma.grad is not None
    assert torch.sign(sigma.grad).tolist()[:2] == [-1, -1] and abs(float(sigma.grad[2])) < 1e-3
    assert torch.sign(sigma.grad).tolist()[3:] == [1, 1] and bool(sigma.grad.isfinite().all())


def test_free_bits_cost_the_same_and_are_not_pulled() -> None:
    near, far = torch.tensor([0.01, 0.02], requires_grad=True), torch.tensor([0.5])
    total = objectives.kl([near, far], free_bits=0.1)
    assert total.item() == pytest.approx(0.7)
    total.backward()
    assert near.grad is not None and near.grad.tolist() == [0.0, 0.0]
    assert objectives.kl([near, far]).item() == pytest.approx(0.53)


def test_consistency_is_half_of_both_divergences() -> None:
    one, other = torch.randn(6, 4), torch.randn(6, 4)
    p, q = Categorical(logits=one), Categorical(logits=other)
    wanted = 0.5 * (kl_divergence(p, q) + kl_divergence(q, p))
    torch.testing.assert_close(objectives.consistency(one, other), wanted.mean())
    keep = torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    torch.testing.assert_close(objectives.consistency(one, other, keep), wanted[keep].mean())
    assert float(objectives.consistency(one, one)) == 0.0


def test_consistency_moves_both_passes_towards_each_other() -> None:
    one = torch.tensor([[2.0, 0.0]], requires_grad=True)
    other = torch.tensor([[0.0, 2.0]], requires_grad=True)
    objectives.consistency(one, other).backward()
    assert one.grad is not None and other.grad is not None
    assert one.grad[0, 0] > 0 > one.grad[0, 1] and other.grad[0, 0] < 0 < other.grad[0, 1]
