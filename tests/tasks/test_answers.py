"""Answers that stand in a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from turnout import UserError
from turnout.tasks.answers import AnswersConfig, AnswersTask, best_span, overlap, words_of

ROWS = [
    {"question": "the actor", "context": "Ann met the witty actor in Rome", "answer": "Rome"},
    {"question": "a film", "context": "the film was very slow", "answer": "very slow"},
    {
        "question": "a film",
        "context": "Bob met the actor with a film and a story",
        "answer": "story",
    },
]


def task(folder: Path, rows: list[dict[str, Any]] = ROWS, **fields: Any) -> AnswersTask:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"train": str(path), "validation": str(path), "max_length": 14, **fields}
    return AnswersTask(AnswersConfig(**fields))


def test_answers_are_found_again(tmp_path: Path) -> None:
    made = task(tmp_path)
    raw = made.load()["validation"]
    rows = made.encode(raw, tiny.tokenizer())
    marks = [np.asarray(row) for row in rows["labels"]]
    assert [len(m) for m in marks] == [len(ids) for ids in rows["input_ids"]]
    gold = made.references(raw)
    assert gold[2].span == (-1, -1)  # cut off
    for row, (first, last) in enumerate(each.span for each in gold[:2]):
        found = made.describe(raw[row], (first, last))
        assert found["prediction"] == ROWS[row]["answer"]
        assert raw[row]["context"][found["start"] :].startswith(ROWS[row]["answer"])
    logits = []
    for m, (first, last) in zip(marks, (each.span for each in gold), strict=True):
        each = np.zeros((len(m), 2))
        if first >= 0:
            each[first, 0] = each[last, 1] = 9.0
        logits.append(each)
    found = [made.predictions(o[None], m[None])[0] for o, m in zip(logits, marks, strict=True)]
    assert found[:2] == [each.span for each in gold[:2]]
    report = made.report(found, gold)
    assert report == {"exact": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "cut_off": 1}


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("the Big Apple.", "big apple", 1.0),
        ("in Rome", "Rome", 2 / 3),
        ("Oslo", "Rome", 0.0),
        ("很好的电影", "好电影", 2 * 3 / 8),
        ("the", "a", 1.0),
        ("$5 million", "5 million", 1.0),
        ("서울 시", "서울시", 0.0),
        ("the", "Rome", 0.0),
    ],
)
def test_f1_is_that_of_squad(found: str, wanted: str, score: float) -> None:
    assert overlap(words_of(found), words_of(wanted)) == pytest.approx(score)


def test_the_same_text_elsewhere_is_right(tmp_path: Path) -> None:
    row = {"question": "a", "context": "Rome and Rome", "answer": "Rome"}
    made = task(tmp_path, [row, row])
    raw = made.load()["validation"]
    made.encode(raw, tiny.tokenizer())
    gold = made.references(raw)
    assert made.counts([(3, 3), (5, 5)], gold)[:, 0].tolist() == [1.0, 1.0]


def test_a_long_question_leaves_half_for_the_context(tmp_path: Path) -> None:
    row = {"question": "the film " * 20, "context": "Rome and Oslo", "answer": "Oslo"}
    made = task(tmp_path, [row, row])
    rows = made.encode(made.load()["validation"], tiny.tokenizer())
    assert len(rows[0]["input_ids"]) == 1 + 7 + 1 + 3 + 1


def test_the_best_span_is_in_order_and_short() -> None:
    logits = np.array([[0.0, 9.0], [5.0, 0.0], [0.0, 1.0], [0.0, 4.0]])
    may = np.array([True, True, True, True])
    assert best_span(logits, may, 9) == (0, 0) or best_span(logits, may, 9) == (1, 3)
    logits[0, 1] = 0.0
    assert best_span(logits, may, 9) == (1, 3)
    assert best_span(logits, may, 2) == (1, 2)
    assert best_span(logits, np.array([True, False, True, True]), 9)[0] != 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Oslo"}, r"train\.jsonl:1: the answer 'Oslo' does not stand there"),
        ({"answer": ""}, "the answer '' does not stand there"),
        ({"answer": None}, "'answer' is None; expected a text"),
        ({"answer": []}, r"'answer' is \[\]; expected a text, or a list"),
        ({"answer": {"text": ["Rome"], "answer_start": ["x"]}}, "start of the answer is 'x'"),
    ],
)
def test_mistakes_are_told_by_place(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        task(tmp_path, [{**ROWS[0], **change}, *ROWS[1:]]).load()


def test_a_start_picks_one_of_several_places(tmp_path: Path) -> None:
    row = {"question": "a", "context": "Rome and Rome", "answer": "Rome", "at": 9}
    made = task(tmp_path, [row, row], start="at")
    raw = made.load()["validation"]
    made.encode(raw, tiny.tokenizer())
    assert made.references(raw)[0].span == (5, 5)
    with pytest.raises(UserError, match="does not stand there"):
        task(tmp_path, [{**row, "at": 3}], start="at").load()


def test_squads_own_form_is_read_and_the_best_of_its_answers_counts(tmp_path: Path) -> None:
    answers = {"text": ["witty actor in Rome", "Rome"], "answer_start": [12, 27]}
    row = {"question": "a", "context": "Ann met the witty actor in Rome", "answers": answers}
    made = task(tmp_path, [row, row], answer="answers")
    raw = made.load()["validation"]
    rows = made.encode(raw, tiny.tokenizer())
    gold = made.references(raw)
    first, last = gold[0].span
    assert gold[0].between(first, last) == "witty actor in Rome" and len(rows) == 2
    counts = made.counts([(first, last), (last, last)], gold)
    assert counts.tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    short = made.counts([(first, last - 1)] * 2, gold)[0]
    assert short.tolist() == [0.0, pytest.approx(6 / 7), 1.0]


def test_a_list_of_answers_is_one_row(tmp_path: Path) -> None:
    row = {"question": "a", "context": "Rome and Oslo", "answer": ["Oslo", "and Oslo"]}
    made = task(tmp_path, [row, {**row, "answer": ["Rome"]}])
    raw = made.load()["validation"]
    made.encode(raw, tiny.tokenizer())
    assert [each.texts for each in made.references(raw)] == [("Oslo", "and Oslo"), ("Rome",)]
    assert list(raw["answer"]) == ["Oslo", "Rome"] and list(raw["answer_start"]) == [9, 0]
