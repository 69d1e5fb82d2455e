"""Texts and the answers that belong to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from turnout import UserError
from turnout.tasks.ranking import RankingConfig, RankingTask

ROWS = ["the actor,Rome", "a film,Oslo", "and a story,Rome", "very slow,Lima"]


def task(folder: Path, rows: list[str] = ROWS, **fields: Any) -> RankingTask:
    path = folder / "train.csv"
    path.write_text("\n".join(["text,answer", *rows]) + "\n")
    named = {"train": str(path), "validation": str(path), "max_length": 8}
    return RankingTask(RankingConfig(**{**named, **fields}))


def test_a_row_is_encoded_as_two(tmp_path: Path) -> None:
    made = task(tmp_path)
    raw = made.load()["validation"]
    rows = made.encode(raw, tiny.tokenizer())
    words = [tiny.WORDS[ids[1]] for ids in rows["input_ids"]]
    assert words == ["the", "Rome", "a", "Oslo", "and", "Rome", "very", "Lima"]
    assert rows["labels"] == [0, 0, 1, 1, 0, 0, 2, 2]
    assert made.references(raw).tolist() == rows["labels"]
    (tmp_path / "new.txt").write_text("a film\n")
    read = made.encode(made.read(str(tmp_path / "new.txt")), tiny.tokenizer())
    assert len(read) == 1 and "labels" not in read.column_names


def test_places_are_counted_among_all_answers(tmp_path: Path) -> None:
    made = task(tmp_path)
    raw = made.load()["validation"]
    angle = np.radians([0, 5, 85, 90, 40, 5, 170, 180])
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1)
    gold = made.references(raw)
    report = made.report(vectors, gold)
    assert report["recall_at_1"] == 1.0 and report["candidates"] == 3
    vectors[0] = vectors[3]  # the first text lies at the wrong answer, its own comes second
    report = made.report(vectors, gold)
    assert report["recall_at_1"] == 0.75 and report["recall_at_3"] == 1.0
    assert report["mean_reciprocal_rank"] == pytest.approx((0.5 + 3) / 4)
    assert made.score(made.counts(vectors, gold).sum(0)) == 0.75
    assert len(made.counts(vectors, gold)) == 4
    alike = made.report(np.ones_like(vectors), gold)
    assert alike["recall_at_1"] == 0.0 and alike["recall_at_3"] == 1.0  # all lie at one place


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,Rome", "b, "], r"train\.csv:3: 'answer' is ' '; expected a text"),
        (["a,Rome", "b,Rome"], "there is nothing to rank"),
    ],
)
def test_mistakes_are_told_by_place(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        task(tmp_path, rows).load()
