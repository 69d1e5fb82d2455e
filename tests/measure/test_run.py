"""A run, from training to report, with real parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from measure.tiny_run import tiny_recipe, tiny_run
from turnout.errors import UserError
from turnout.measure.config import MeasureConfig
from turnout.measure.results import Results, load
from turnout.measure.run import measure
from turnout.run import Run

LAYERS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_run(folder, tiny_recipe(folder))


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def results(run: Run, said: list[str]) -> Results:
    return measure(run, command="turnout measure tiny", progress=False, say=said.append)


def test_every_family_is_there(results: Results) -> None:
    names = [(arm.family, arm.name) for arm in results.arms]
    assert names == [
        ("dense", "dense"),
        ("routed", "routed-80"),
        ("routed", "routed-50"),
        ("static", "first-1"),
        ("static", "every-other"),
        ("random", "random-80"),
        ("random", "random-50"),
    ]
    assert results.task.test_examples == 60
    assert all(len(arm.seconds.runs) == 2 for arm in results.arms)
    assert all(
        0 <= arm.quality.low <= arm.quality.value <= arm.quality.high for arm in results.arms
    )


def test_work_adds_up(results: Results) -> None:
    arms = {arm.name: arm for arm in results.arms}
    dense = results.dense
    assert (dense.units_run, dense.share, dense.speedup.value) == (LAYERS, 1.0, 1.0)
    assert arms["first-1"].flops_per_example == pytest.approx(dense.flops_per_example / 3)
    assert arms["every-other"].flops_per_example == pytest.approx(dense.flops_per_example * 2 / 3)
    assert arms["every-other"].parameters < dense.parameters
    for name in ("routed-80", "routed-50", "random-80", "random-50"):
        arm, use = arms[name], results.units[name]
        assert sum(share for shares in use.values() for share in shares) == pytest.approx(
            arm.units_run
        )
        # the pair term makes long texts dearer than their share of tokens, not by much here
        assert arm.flops_per_example / dense.flops_per_example == pytest.approx(arm.share, abs=0.05)
    assert arms["random-50"].share == pytest.approx(arms["routed-50"].share, abs=0.2)


def test_heatmap_is_a_real_sentence(results: Results) -> None:
    heatmap = results.heatmap
    assert heatmap is not None and heatmap.arm == "routed-50"
    assert heatmap.tokens[0] == "[CLS]" and heatmap.tokens[-1] == "[SEP]"
    assert heatmap.text == " ".join(heatmap.tokens[1:-1])
    assert all(len(set(row)) == 1 for row in heatmap.ran)  # decided per sequence


def test_files_are_left_in_the_run(run: Run, results: Results) -> None:
    assert load(run.path / "results.json") == results
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "first-1" in page and "One sentence, token by token" in page
    assert (run.path / "static" / "first-1" / "model.safetensors").is_file()
    assert not run.checkpoints.exists()


def test_cut_models_are_trained_once(run: Run, results: Results, said: list[str]) -> None:
    assert said[0] == "training 2 cut model(s) to compare with: first-1, every-other"
    assert [text.split(":")[0].strip() for text in said[1:]] == ["first-1", "every-other"]
    said.clear()
    config = run.recipe.measure.model_copy(update={"repeats": 1, "budgets": [0.5]})
    again = measure(run, config, progress=False, say=said.append)
    assert not said
    kept = {arm.name: arm.quality for arm in results.arms}
    assert all(arm.quality == kept[arm.name] for arm in again.arms)


def test_fewer_examples_are_noted(run: Run, results: Results) -> None:
    config = MeasureConfig(budgets=[0.5], static=[], repeats=1, bootstrap=20, max_examples=25)
    few = measure(run, config, progress=False)
    assert few.task.test_examples == 25
    assert any(note.startswith("25 of 60 test examples") for note in few.notes)


def test_half_precision(run: Run) -> None:
    config = MeasureConfig(budgets=[0.5], static=[], repeats=1, bootstrap=20, dtype="bf16")
    results = measure(run, config, progress=False)
    assert results.dtype == "bf16"
    assert any("routers keep fp32" in note for note in results.notes)


def test_a_wrong_cut_is_said_before_anything_is_trained(run: Run) -> None:
    with pytest.raises(UserError, match="first-1 to first-2"):
        measure(run, run.recipe.measure.model_copy(update={"static": ["first-9"]}), progress=False)
    assert not run.static("first-9").exists()


def test_without_a_test_file(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, budgets=[0.5], static=[], repeats=1, bootstrap=20)
    task = recipe.task.model_copy(update={"test": None})
    run = tiny_run(tmp_path, recipe.model_copy(update={"task": task}))
    results = measure(run, progress=False)
    assert results.task.test_examples == 40
    assert any("validation examples" in note for note in results.notes)
