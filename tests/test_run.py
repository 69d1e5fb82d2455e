"""Run folders: made, opened, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

from turnout import UserError
from turnout.recipe import Recipe, load
from turnout.run import check_same, is_run, open_run, start_run


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load(tiny.save_recipe(tmp_path))


def test_started_and_opened(recipe: Recipe, tmp_path: Path) -> None:
    made = start_run(tmp_path / "a" / "b", recipe, ["no", "yes"])
    found = open_run(tmp_path / "a" / "b")
    assert found == made
    assert is_run(found.path) and not is_run(tmp_path)
    assert found.task().labels == ["no", "yes"]
    assert found.static("first-1") == tmp_path / "a" / "b" / "static" / "first-1"


def test_stages_that_are_not_there_yet(recipe: Recipe, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", recipe, ["no", "yes"])
    for stage, read in (
        ("dense", run.load_dense),
        ("dense", run.tokenizer),
        ("routed", run.load_routed),
    ):
        with pytest.raises(UserError, match=f"has no {stage}/ yet: .*Go on with: turnout train "):
            read()


def test_begun_in_part_it_is_gone_on_with(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise UserError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space"):
        patch.setattr("turnout.run.write_text", full)
        start_run(tmp_path / "run", recipe, ["no", "yes"])
    start_run(tmp_path / "run", recipe, ["no", "yes"])
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_what_to_measure_can_be_changed_without_the_host(recipe: Recipe, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", recipe, ["no", "yes"])
    shutil.rmtree(recipe.model)
    assert run.measure_config(["repeats=15"]).repeats == 15


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_cut_short(name: str, recipe: Recipe, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", recipe, ["no", "yes"])
    shutil.copytree(recipe.model, run.dense)
    assert run.tokenizer().pad_token
    file = run.dense / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="dense: the tokenizer cannot be loaded"):
        run.tokenizer()


def test_what_is_no_run(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        open_run(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"it holds no run\.json"):
        open_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        start_run(tmp_path / "file", recipe, [])


def test_runs_of_other_versions(recipe: Recipe, tmp_path: Path) -> None:
    start_run(tmp_path / "run", recipe, ["no", "yes"])
    file = tmp_path / "run" / "run.json"
    whole = json.loads(file.read_text())
    for change, message in (
        ({"format": 2, "turnout": "9.9"}, "format 2, written by turnout 9.9; .* reads format 1"),
        ({"format": None}, "format None"),
        ({"recipe": {**whole["recipe"], "future": 1}}, "does not fit this version.*future"),
        ({"labels": None}, "does not fit this version"),
    ):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(UserError, match=message):
            open_run(tmp_path / "run")
    file.write_text('{"format": 1, ')
    with pytest.raises(UserError, match=r"run.json:1:\d+: not valid JSON"):
        open_run(tmp_path / "run")
    file.write_text("[]")
    with pytest.raises(UserError, match="format None"):
        open_run(tmp_path / "run")


def test_only_what_is_measured_may_change(recipe: Recipe, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", recipe, ["no", "yes"])
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 3})})
    check_same(run, other)  # nothing was trained yet
    run.dense.mkdir()
    with pytest.raises(UserError, match=r"train\.seed is 0 there and 3 here"):
        check_same(run, other)
    measure = recipe.measure.model_copy(update={"repeats": 1})
    check_same(run, recipe.model_copy(update={"measure": measure}))
