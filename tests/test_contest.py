"""turnout compare: several routers from one dense host, in one table."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from rich.console import Console

from turnout import UserError, contest
from turnout.files import read_json
from turnout.install import parse_router
from turnout.recipe import load

FEW = (
    "train.epochs=1",
    "train.dropout=0.0",
    "measure.repeats=2",
    "measure.budgets=[0.6, 0.3]",
    "measure.static=[first-1]",
)


def test_contenders_share_the_dense_host_and_the_measurement(tmp_path: Path) -> None:
    recipe = load(tiny.save_recipe(tmp_path), FEW)
    said: list[str] = []
    names = ["gate", "policy", "recipe"]
    results = contest.compare(recipe, names, tmp_path / "out", say=said.append, progress=False)
    weights = [
        (tmp_path / "out" / name / "dense" / "model.safetensors").read_bytes() for name in names
    ]
    assert weights[0] == weights[1] == weights[2]
    assert sum("dense host:" in line and "parameters" in line for line in said) == 1
    routed = {(arm.router, arm.budget) for arm in results.family("routed")}
    assert routed == {(name, budget) for name in names for budget in (0.6, 0.3)}
    assert [arm.name for arm in results.family("static")] == ["first-1"]
    chances = [arm.name for arm in results.family("random")]
    assert sorted(chances) == ["random-layer-sequence-30", "random-layer-sequence-60"]
    found = read_json(tmp_path / "out" / "comparison.json")
    assert {row["name"] for row in found["standings"]} == set(names)
    assert all(row["training_seconds"] > 0 for row in found["standings"])
    console = Console(record=True, width=120)
    console.print(contest.table(tmp_path / "out"))
    shown = console.export_text()
    assert "gate" in shown and "1.5x" in shown

    said.clear()
    contest.compare(recipe, names, tmp_path / "out", say=said.append, progress=False)
    assert sum("is trained already" in line for line in said) == 3


def test_contenders_trained_at_once_are_the_same(tmp_path: Path) -> None:
    recipe = load(tiny.save_recipe(tmp_path), FEW)
    for name, jobs in (("one", 1), ("two", 2)):
        contest.compare(
            recipe, ["gate", "policy"], tmp_path / name, jobs=jobs, say=str, progress=False
        )
    for router in ("gate", "policy"):
        weights = [
            (tmp_path / name / router / "routed" / "model.safetensors").read_bytes()
            for name in ("one", "two")
        ]
        assert weights[0] == weights[1]
    with pytest.raises(UserError, match="jobs must be at least 1"):
        contest.compare(recipe, ["gate"], tmp_path / "none", jobs=0)


def test_every_contender_is_a_router() -> None:
    for name, spec in contest.CONTENDERS.items():
        assert parse_router(spec).kind in name or name.startswith("gate"), name


def test_names_of_contenders() -> None:
    assert contest.chosen(["all"]) == list(contest.CONTENDERS)
    assert contest.chosen(["gate", "all", "recipe"]) == [*contest.CONTENDERS, "recipe"]
    with pytest.raises(UserError, match="unknown contender 'gat'; known: all, exit"):
        contest.chosen(["gat"])
