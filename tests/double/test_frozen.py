"""A frozen backbone reads the training rows once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from double.test_pipeline import save_recipe, stopped, train
from turnout.double import pipeline
from turnout.double.frozen import is_fixed, states_of
from turnout.double.recipe import TasksRecipe
from turnout.hosts.tasks_model import TasksModel
from turnout.train.data import encode

HOW = ["train.strategy=router", "train.dropout=0", "train.epochs=4"]


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass that read a text was one of training."""
    calls: list[bool] = []
    read = TasksModel.read

    def noting(self: TasksModel, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        calls.append(self.training)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(TasksModel, "read", noting)
    return calls


@pytest.mark.parametrize("layers", ["last", "mixed"])
def test_the_same_is_learned_without_reading_again(
    layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recipe(tmp_path)
    how = [*HOW, "train.max_steps=3", f"layers={layers}"]
    with monkeypatch.context() as patch:
        calls = calls_of(patch)
        kept = train(tmp_path, "kept", *how).load().state_dict()
        assert calls and not any(calls)
    monkeypatch.setattr(pipeline, "is_fixed", lambda model: False)
    calls = calls_of(monkeypatch)
    plain = train(tmp_path, "plain", *how).load().state_dict()
    assert sum(calls) >= 3
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-2, atol=1e-3)


def test_a_stopped_training_goes_on_exactly(tmp_path: Path) -> None:
    save_recipe(tmp_path)
    whole = train(tmp_path, "whole", *HOW).load().state_dict()
    stopped(tmp_path, "cut", 2, *HOW)
    again = train(tmp_path, "cut", *HOW).load().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("change", "fixed"),
    [
        ([], True),
        (["train.strategy=full"], False),
        (["train.strategy=prompt"], False),
        (["train.dropout=0.1"], False),
        (["routers=[{kind: gate, site: layer}]"], False),
        (["routers=[]", "train.strategy=head"], True),
    ],
)
def test_what_may_change_is_read_again(change: list[str], fixed: bool, tmp_path: Path) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), [*HOW, *change])
    tasks, raw = pipeline.load_tasks(recipe, str)
    model, tokenizer = pipeline.new_model(recipe, tasks)
    pipeline.hold(model, recipe.train)
    pipeline.set_dropout(model, recipe.train.dropout, None)
    assert is_fixed(model) is fixed
    if not fixed:
        return
    data = {name: encode(task, raw[name], tokenizer) for name, task in tasks.items()}
    states = states_of(model, data)
    assert {state.shape[0] for state in states["mood"]} == {1}
    lengths = [len(ids) for ids in data["names"].train["input_ids"]]
    assert [state.shape[0] for state in states["names"]] == lengths


def test_what_is_too_much_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), HOW)
    tasks, raw = pipeline.load_tasks(recipe, str)
    model, tokenizer = pipeline.new_model(recipe, tasks)
    data = {name: encode(task, raw[name], tokenizer) for name, task in tasks.items()}
    texts = 4 * len(data["mood"].train) * model.config.hidden_size
    monkeypatch.setattr("turnout.double.frozen.MOST", texts)
    assert list(states_of(model, data)) == ["mood"]  # a state a text; names have one a token
    monkeypatch.setattr("turnout.double.frozen.MOST", 100)
    calls = calls_of(monkeypatch)
    assert train(tmp_path, "run", *HOW).model.is_dir() and sum(calls) > 10
