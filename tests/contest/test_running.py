"""turnout compare: several routers from one dense host, in one table."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from rich.console import Console

from turnout import UserError, contest
from turnout.recipe import load
from turnout.train.teacher import FILE

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
    asked = {(tmp_path / "out" / name / "dense" / FILE).stat().st_mtime_ns for name in names}
    assert len(asked) == 1  # copies of one file: the dense host was asked once
    assert sum("dense host:" in line and "parameters" in line for line in said) == 1
    routed = {(arm.router, arm.budget) for arm in results.family("routed")}
    assert routed == {(name, budget) for name in names for budget in (0.6, 0.3)}
    assert [arm.name for arm in results.family("static")] == ["first-1"]
    chances = [arm.name for arm in results.family("random")]
    places = ("layer-sequence", "layer-sequence hold_first=1")  # of the gate, and of the policy
    assert set(chances) == {f"random-{place}-{budget}" for place in places for budget in (30, 60)}
    found = contest.load(tmp_path / "out")
    assert {standing.name for standing in found.standings} == set(names)
    assert all(standing.seconds[0] > 0 for standing in found.standings)
    console = Console(record=True, width=120)
    console.print(contest.ranking(found).rich())
    shown = console.export_text()
    assert "gate" in shown and "1.5x" in shown
    assert [point.arm for point in found.points[0]] == [arm.name for arm in results.arms]
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert all(f"| {name} |" in page for name in (*names, "cut models", *chances))

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


def test_seeds_are_one_comparison(tmp_path: Path) -> None:
    recipe = load(tiny.save_recipe(tmp_path), FEW)
    out = tmp_path / "out"
    whole = contest.compare_seeds(recipe, ["gate"], out, [3, 5], say=str, progress=False)
    each = [contest.load(out / f"seed-{seed}") for seed in (3, 5)]
    assert whole == contest.load(out) and whole.seeds == [3, 5]
    assert whole.points == [one.points[0] for one in each]
    weights = {(out / f"seed-{n}/gate/dense/model.safetensors").read_bytes() for n in (3, 5)}
    assert len(weights) == 2
    assert "Means over 2 seeds" in (out / "comparison.md").read_text()
    for seeds in ([], [1, 1], [-1]):
        with pytest.raises(UserError, match="different whole numbers"):
            contest.compare_seeds(recipe, ["gate"], out, seeds)
