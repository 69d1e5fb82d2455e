"""The alarm for routers that collapse, and the measured number format."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosts_table import BY_NAME

import turnout
from turnout.train.callbacks import WINDOW, CollapseCallback
from turnout.train.precision import faster_precision, resolve


def said_by(gate: dict[str, Any], spread: float, budget: float = 1.0) -> list[str]:
    """What the alarm says of a gate, over one window of real forward passes."""
    model = turnout.install(BY_NAME["bert"].build(), [{"kind": "gate", **gate}]).train()
    for name, parameter in model.turnout.named_parameters():
        if name.endswith("weight"):
            parameter.data.normal_(std=spread, generator=torch.Generator().manual_seed(0))
    said: list[str] = []
    alarm = CollapseCallback(said.append, budget)
    inputs = BY_NAME["bert"].inputs()
    for step in range(1, WINDOW + 1):
        model(**inputs)
        state = SimpleNamespace(global_step=step, max_steps=WINDOW)
        alarm.on_step_end(None, state, None, model=model)
    alarm.on_train_end(None, state, None)
    return said


def test_a_site_that_never_runs_is_told_once_each() -> None:
    said = said_by({"open": -20.0}, spread=0.0)
    assert len(said) == len(set(said)) > 0
    assert all("hardly ever runs" in text and "balance" in text for text in said)


def test_only_gates_that_learn_the_budget_are_told_of_it() -> None:
    assert said_by({"open": 20.0, "keep": "top-k", "site": "head"}, spread=1.0, budget=0.0) == []


def test_gates_that_stay_open_are_told() -> None:
    said = said_by({"open": 20.0}, spread=0.0, budget=0.5)
    assert said == [text for text in said if "run 100% of their units, and 50% was asked" in text]
    assert len(said) == 1 and not said_by({"open": 20.0}, spread=0.0, budget=0.9)


def test_the_same_decision_for_every_input_is_told() -> None:
    assert any("the same for every input" in text for text in said_by({"open": 0.0}, spread=0.0))


@pytest.mark.parametrize(("opened", "spread"), [(20.0, 0.0), (0.0, 1.0)])
def test_open_gates_and_gates_that_choose_are_no_collapse(opened: float, spread: float) -> None:
    assert said_by({"open": opened}, spread) == []


def test_the_format_is_measured_or_taken_as_asked() -> None:
    assert resolve("fp32") == "fp32" and resolve("bf16") == "bf16"
    assert resolve("auto") == faster_precision() in ("fp32", "bf16")


def test_logs_for_tensorboard(work: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = turnout.install(work.model(), [{"kind": "exit"}])
    work.fit(model, epochs=2, tensorboard=True)
    events = EventAccumulator(str(work.folder / "out" / "logs")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "train/loss_exits", "train/share", "train/tokens_per_second"} <= names
