"""The definition of correct, on numbers that a reader can check."""

from __future__ import annotations

import torch

from turnout.execute.reference import pick_rows, pick_sequences


def test_rows() -> None:
    full, skipped = torch.full((1, 3, 1), 10.0), torch.tensor([[[1.0], [2.0], [3.0]]])
    index = torch.tensor([0, 2])
    assert pick_rows(full, skipped, index, None).flatten().tolist() == [10, 2, 10]
    weighted = pick_rows(full, skipped, index, torch.tensor([0.5, 2.0]))
    assert weighted.flatten().tolist() == [5.5, 2, 17]


def test_sequences() -> None:
    full, x = torch.ones(2, 3, 1), torch.zeros(2, 3, 1)
    assert pick_sequences(full, x, torch.tensor([True, False])).sum((1, 2)).tolist() == [3, 0]
