"""A run of turnout as the judge of new rows: it checks labels, and a recipe is trained twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from turnout.errors import UserError
from turnout.generation.augment import Row
from turnout.generation.augment_files import read_rows
from turnout.generation.judging import run_check
from turnout.generation.training_gain import recipe_gain

QUICK = tiny.RECIPE.replace("epochs: 2", "epochs: 1\n  max_steps: 6")


def test_a_recipe_is_trained_twice_and_its_run_checks_labels(tmp_path: Path) -> None:
    recipe = tiny.save_recipe(tmp_path, QUICK)
    rows = read_rows(str(tmp_path / "train.csv"), "text", "label")
    test = read_rows(str(tmp_path / "test.csv"), "text", "label")
    new = [Row("a very lovely film", "positive"), Row("a very awful film", "negative")]
    found = recipe_gain(recipe, rows, new, test, tmp_path / "runs", "cpu", lambda text: None)
    assert found.rows == 20 and 0 <= found.without <= 1 and found.low <= found.gain <= found.high
    learned = (tmp_path / "runs" / "with.jsonl").read_text().splitlines()
    assert len(learned) == len(rows) + 2
    agrees = run_check(tmp_path / "runs" / "with", "cpu")
    texts = ["a lovely film", "an awful\nfilm"]
    good, bad = agrees(texts, ["positive"] * 2), agrees(texts, ["negative"] * 2)
    assert [a + b for a, b in zip(good, bad, strict=True)] == pytest.approx([1, 1], abs=1e-3)
    assert agrees([], []) == []
    with pytest.raises(UserError, match="no label 'neutral'"):
        agrees(texts, ["neutral", "positive"])


def test_rows_must_have_texts_and_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood film,\n")
    with pytest.raises(UserError, match=r"a.csv:2: 'label' is empty"):
        read_rows(str(tmp_path / "a.csv"), "text", "label")
