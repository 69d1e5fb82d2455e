"""Settings are searched by Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from double.test_pipeline import save_recipe
from turnout import UserError
from turnout.double import search as module
from turnout.double.recipe import TasksRecipe
from turnout.double.search import Choice, Range, search, space_of
from turnout.files import read_json

pytestmark = pytest.mark.filterwarnings("ignore:.*:optuna.exceptions.ExperimentalWarning")


def test_a_space_is_read() -> None:
    found = space_of(
        ["learning_rate=1e-5..1e-3", "train.blocks=1..3", "dropout=0..1", "strategy=full|lora"]
    )
    assert found == {
        "learning_rate": Range(1e-5, 1e-3),
        "blocks": Range(1.0, 3.0, whole=True),
        "dropout": Range(0.0, 1.0),
        "strategy": Choice(("full", "lora")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate=1..2", "train has no field 'rate'"),
        ("decay=2..1", r"a range is written LOW\.\.HIGH"),
        ("decay=x..y", r"a range is written LOW\.\.HIGH"),
        ("blocks=1.5..3", "this field takes whole numbers"),
        ("seed=1..3", "seed is the same for all trials"),
        ("decay=0.5", r"give LOW\.\.HIGH, or several values"),
    ],
)
def test_mistakes_are_told(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of([text])


def test_the_best_settings_are_found_and_kept(tmp_path: Path) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), ["train.epochs=8", "train.seed=1"])
    space = space_of(["head_learning_rate=1e-7|0.03", "strategy=head|router"])
    said: list[str] = []
    best = search(recipe, tmp_path / "out", space, 6, say=said.append)
    trials = read_json(tmp_path / "out" / "trials.json")
    scores = [trial["score"] for trial in trials]
    assert len(scores) == 6 and max(scores) > min(scores) + 0.05
    top = max(trials, key=lambda trial: trial["score"])
    assert best == {name: top[name] for name in ("head_learning_rate", "strategy")}
    assert len({trial["score"] for trial in trials}) > 1
    page = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert page["train"]["strategy"] == best["strategy"]
    assert TasksRecipe.load(tmp_path / "out" / "best.yaml").train.epochs == 8
    search(recipe, tmp_path / "out", space, 7, say=said.append)
    assert len(read_json(tmp_path / "out" / "trials.json")) == 7
    assert not list((tmp_path / "out").glob("run-*"))


def test_a_trial_trains_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TasksRecipe.load(save_recipe(tmp_path), ["train.epochs=1"])
    space = space_of(["strategy=full|head|partial", "batch_size=4|16"])
    seen: list[tuple[str, int, int]] = []
    setup = module.SearchTrainer._hp_search_setup

    def noting(self: Any, trial: Any) -> None:
        setup(self, trial)
        learns = sum(p.numel() for p in self.model.backbone.parameters() if p.requires_grad)
        seen.append((trial.params["strategy"], learns, len(self.train_dataset)))
        assert self.train_dataset.size == int(trial.params["batch_size"])
        assert self.tasks_config.strategy == trial.params["strategy"]

    monkeypatch.setattr(module.SearchTrainer, "_hp_search_setup", noting)
    search(recipe, tmp_path / "out", space, 6, say=str)
    by_name = {name: learns for name, learns, _ in seen}
    assert len(by_name) > 1
    assert all(by_name[name] == learns for name, learns, _ in seen)
    assert by_name.get("head", 0) == 0 and all(
        learns > 0 for name, learns in by_name.items() if name != "head"
    )
