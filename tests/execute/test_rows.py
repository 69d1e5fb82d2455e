"""Packing rows and putting them back."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

from turnout.execute.rows import gather, modulate, overlay, scatter

INDEX = torch.tensor([1, 2, 5])


def state() -> torch.Tensor:
    return torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)


def test_gather_and_scatter_are_inverse_on_the_index() -> None:
    x = state()
    back = scatter(gather(x, INDEX), INDEX, x).view(6, 4)
    assert torch.equal(back[INDEX], x.view(6, 4)[INDEX])
    others = torch.tensor([0, 3, 4])
    assert (back[others] == 0).all()


def test_overlay_leaves_the_base_as_it_was() -> None:
    base, rows = torch.zeros(2, 3, 4), torch.ones(3, 4)
    out = overlay(rows, INDEX, base)
    assert (base == 0).all() and out.sum() == 12 and (out.view(6, 4)[INDEX] == 1).all()


def test_scatter_takes_its_width_from_the_rows() -> None:
    assert scatter(torch.ones(3, 7), INDEX, torch.zeros(2, 3, 4)).shape == (2, 3, 7)


def test_no_rows() -> None:
    none = torch.empty(0, dtype=torch.long)
    x = state()
    assert gather(x, none).shape == (0, 4)
    assert torch.equal(overlay(gather(x, none), none, x), x)


def test_gradients() -> None:
    assert gradcheck(lambda x: gather(x, INDEX), (state(),))
    assert gradcheck(lambda x: scatter(gather(x, INDEX) ** 2, INDEX, x), (state(),))
    assert gradcheck(lambda x: overlay(gather(x, INDEX) ** 2, INDEX, x), (state(),))


def test_a_weight_of_one_is_exact() -> None:
    out, x = torch.randn(1000), torch.randn(1000) * 1e4
    assert torch.equal(modulate(out, x, torch.ones(1000)), out)
    torch.testing.assert_close(modulate(out, x, torch.zeros(1000)), x, rtol=1e-3, atol=1e-3)
