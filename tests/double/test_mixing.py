"""Batches of several tasks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from turnout import UserError
from turnout.double.mixing import Batches, BatchOrder, shares

ROWS = {
    "long": [{"input_ids": list(range(3 + n % 7)), "n": n} for n in range(160)],
    "short": [{"input_ids": [1, 2], "n": n} for n in range(10)],
}


def test_shares_by_hand() -> None:
    np.testing.assert_allclose(shares([90, 10], "proportional", 2.0), [0.9, 0.1])
    np.testing.assert_allclose(shares([90, 10], "temperature", 2.0), [0.75, 0.25])
    np.testing.assert_allclose(shares([90, 10], "round-robin", 2.0), [0.5, 0.5])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [("proportional", (21, 1)), ("temperature", (18, 4)), ("round-robin", (11, 11))],
)
def test_every_batch_is_of_one_task(sampling: str, expected: tuple[int, int]) -> None:
    batches = Batches(ROWS, 8, sampling=sampling)  # type: ignore[arg-type]
    items = [batches[n] for n in range(len(batches))]
    assert tuple(Counter(task for task, _ in items)[n] for n in (0, 1)) == expected
    assert all(len(rows) == 8 for _, rows in items)
    assert len({task for task, _ in items[:8]}) == 2 or sampling != "round-robin"
    widths = [[len(row["input_ids"]) for row in rows] for task, rows in items if task == 0]
    assert np.mean([max(each) - min(each) for each in widths]) < 1  # of like length


def test_proportional_takes_every_row_once_an_epoch() -> None:
    batches = Batches({"long": ROWS["long"]}, 8)
    order = BatchOrder(batches)
    layouts = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        seen = [row["n"] for n in order for row in batches[n][1]]
        assert sorted(seen) == list(range(160))
        layouts.append(seen)
    assert layouts[0] == layouts[2] != layouts[1]


def test_validation_takes_every_row_once_in_order() -> None:
    batches = Batches(ROWS, 8, shuffled=False)
    found = [
        (task, row["n"])
        for task, rows in map(batches.__getitem__, range(len(batches)))
        for row in rows
    ]
    assert found == [(0, n) for n in range(160)] + [(1, n) for n in range(10)]


def test_a_task_without_rows_is_named() -> None:
    with pytest.raises(UserError, match="task 'empty' has no rows"):
        Batches({**ROWS, "empty": []}, 8)


def test_rows_that_belong_together_stay_so() -> None:
    batches = Batches({"pairs": ROWS["long"]}, 8, together={"pairs": 2})
    seen = []
    for place in range(len(batches)):
        numbers = [row["n"] for row in batches[place][1]]
        assert len(numbers) == 8 and all(n % 2 == 0 for n in numbers[::2])
        assert numbers[1::2] == [n + 1 for n in numbers[::2]]
        seen += numbers
    assert sorted(seen) == list(range(160))
