"""Numbers of texts."""

from __future__ import annotations

import numpy as np
import pytest

from turnout.tasks.number import NumberConfig, NumberTask


@pytest.mark.parametrize(("unit", "start"), [(1e-6, 0.0), (1.0, 0.0), (1e6, 0.0), (1.0, 1e4)])
def test_the_score_knows_no_unit(unit: float, start: float) -> None:
    task = NumberTask(NumberConfig(train="x"), ["label", repr(start), repr(unit)])
    gold = start + unit * np.arange(20.0)
    logits = np.arange(20.0)[:, None] + 0.1 * (-1.0) ** np.arange(20)[:, None]
    found = task.predictions(logits)
    np.testing.assert_allclose(found, start + unit * logits[:, 0])
    assert task.score(task.counts(found, gold).sum(0)) == pytest.approx(0.9998, abs=2e-4)
    assert task.score(task.counts(np.full(20, start + unit), gold).sum(0)) == 0.0
