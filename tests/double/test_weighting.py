"""How much the loss of each task counts."""

from __future__ import annotations

import math

import pytest
import torch

from turnout.double.config import TasksTrainConfig
from turnout.double.weighting import weighed
from turnout.units.task_heads import Head, HeadConfig


def head(log_variance: float) -> Head:
    made = Head(HeadConfig(kind="class", width=2), 4, 0.0)
    with torch.no_grad():
        made.log_variance.fill_(log_variance)
    return made


def test_fixed_weights_are_those_of_the_recipe() -> None:
    config = TasksTrainConfig(weights={"mood": 2.5})
    loss = torch.tensor(0.4)
    assert float(weighed(loss, "mood", head(1.0), config).detach()) == pytest.approx(1.0)
    assert float(weighed(loss, "names", head(1.0), config).detach()) == pytest.approx(0.4)


def test_uncertainty_is_learned_from_the_loss() -> None:
    config, loss, made = TasksTrainConfig(weighting="uncertainty"), torch.tensor(0.4), head(0.7)
    found = weighed(loss, "mood", made, config)
    assert float(found.detach()) == pytest.approx(math.exp(-0.7) * 0.4 + 0.35)
    found.backward()
    assert made.log_variance.grad is not None and float(made.log_variance.grad) > 0  # too unsure
    best = head(math.log(2 * 0.4))  # where exp(-s) L + s / 2 is least
    weighed(loss, "mood", best, config).backward()
    assert float(best.log_variance.grad) == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]
