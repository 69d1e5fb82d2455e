"""More rows from few: prompts, what is left out, and what the rest is worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import UserError
from turnout.generation.alike import Seen, jaccard, normalized, shingles
from turnout.generation.augment import (
    AugmentSettings,
    Row,
    augment,
    cleaned,
    prompts,
    sift,
    word_dropout,
)
from turnout.generation.judging import gain, gain_of, plain_check

ROWS = [
    *(Row(f"a {word} warm story", "good") for word in ("fine", "lovely", "witty")),
    *(Row(f"a {word} slow film", "bad") for word in ("dull", "awful", "cold")),
]


def test_prompts_have_rows_of_one_label_and_end_with_the_row() -> None:
    found = prompts(ROWS, AugmentSettings(per_example=2, examples=3))
    assert [place for place, _ in found] == [p for p in range(6) for _ in range(2)]
    _, prompt = found[0]
    *lines, newest, head = prompt.split("\n")
    assert newest == "good: a fine warm story" and head == "good:" and len(lines) == 2
    assert all(line.startswith("good: ") for line in lines)
    assert found == prompts(ROWS, AugmentSettings(per_example=2, examples=3))
    assert found != prompts(ROWS, AugmentSettings(per_example=2, examples=3, seed=1))


def test_what_is_written_is_sifted_and_counted() -> None:
    texts = {
        0: 'good: "A glad and bright tale"\ngood: more',  # kept, cleaned
        1: "a FINE warm, story!",  # an original
        2: "A glad and bright tale.",  # seen
        3: "\n\n",  # nothing
        4: "a fine lovely witty tale",  # of the other label
        5: "- a dull slow tale",  # kept
    }

    def write(asked: Sequence[str]) -> list[str]:
        return [texts[place] for place in range(len(asked))]

    found = augment(ROWS, write, AugmentSettings(), plain_check(ROWS))
    assert found.rows == [Row("A glad and bright tale", "good"), Row("a dull slow tale", "bad")]
    assert found.sources == [0, 5]
    counts = {"asked": 6, "empty": 1, "duplicate": 2, "inconsistent": 1, "kept": 2, "written": 5}
    assert found.report.facts() == counts
    unchecked = augment(ROWS, write, AugmentSettings())
    assert unchecked.report.kept == 3 and unchecked.report.inconsistent == 0


@given(st.lists(st.text("ab ", max_size=14), max_size=12), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_no_two_texts_that_are_kept_are_alike(texts: list[str], threshold: float) -> None:
    seen, kept = Seen(threshold), list[str]()
    for text in texts:
        near = any(jaccard(shingles(text), shingles(each)) >= threshold for each in kept)
        assert seen.holds(text) == near
        if not near:
            seen.add(text)
            kept.append(text)
    for one, other in combinations(kept, 2):
        assert jaccard(shingles(one), shingles(other)) < threshold


def test_cleaning() -> None:
    assert cleaned("  \n 1. “Warm  day” \nmore", "good") == "Warm day"
    assert cleaned("good:good", "good") == "good"
    assert cleaned("\x07a b\u200b", "x") == "a b"
    assert cleaned("", "x") == "" and normalized("Ｆine—DAY!") == "fine day"
    with pytest.raises(UserError, match=r"needs .label. and .text."):
        prompts(ROWS, AugmentSettings(template="{text}"))
    with pytest.raises(UserError, match="must stand before"):
        prompts(ROWS, AugmentSettings(template="{text} {label}"))
    with pytest.raises(UserError, match="no rows"):
        prompts([], AugmentSettings())
    with pytest.raises(ValueError, match="6 prompts were given, 1 texts"):
        augment(ROWS, lambda asked: ["x"])


def test_word_dropout() -> None:
    rng = np.random.default_rng(0)
    text = " ".join(map(str, range(2000)))
    kept = word_dropout(text, 0.3, rng).split()
    assert 1300 < len(kept) < 1500 and kept == sorted(kept, key=int)
    assert word_dropout(text, 0.0, rng) == text
    assert word_dropout("a b c", 1.0, rng) in ("a", "b", "c") and word_dropout("", 0.5, rng) == ""
    with pytest.raises(ValueError, match="rate"):
        word_dropout("a", 1.5, rng)


def test_gain_of_new_rows() -> None:
    few = [Row("good warm", "good"), Row("bad slow", "bad")]
    new = [Row("lovely witty", "good"), Row("awful dull", "bad")] * 3
    test = [Row("lovely", "good"), Row("witty", "good"), Row("awful", "bad"), Row("dull", "bad")]
    found = gain(few, new, test * 5)
    assert (found.without, found.with_new, found.rows) == (0.5, 1.0, 20)
    assert found.gain == 0.5 and 0 < found.low <= 0.5 <= found.high
    assert gain_of([True, False], [True, False]).gain == 0
    with pytest.raises(UserError, match="two labels"):
        gain(few[:1], [], test)


def test_a_threshold_that_keeps_all() -> None:
    written = [(0, "a glad tale"), (3, "a glad story now")]
    check = plain_check(ROWS)
    all_of = sift(ROWS, written, AugmentSettings(threshold=0), check)
    assert all_of.report.kept == 2
    assert sift(ROWS, written, AugmentSettings(threshold=1), check).report.inconsistent == 2
