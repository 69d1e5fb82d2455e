"""Measures of diversity: values that can be found by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.generation import variety

ALIKE = ["the same words here again"] * 4
VARIED = ["a warm day", "trains leave at noon", "Oslo has fine ships", "nobody met the cat"]


def test_values_by_hand() -> None:
    assert variety.distinct(["a b", "a c"], 1) == 3 / 4
    assert variety.distinct(["a b c", "a b d"], 2) == 3 / 4
    # 3 of 4 draws differ; 10 equally likely words would give 10 * (1 - 0.9 ** 4)
    assert variety.expected_distinct(["a b", "a c"], 10) == pytest.approx(3 / (10 * (1 - 0.9**4)))
    assert variety.entropy(["a b", "c d"], 1) == 2.0
    assert variety.entropy(["a a a"], 1) == 0.0
    assert variety.repetition("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert variety.repetition("a b c", 4) == 0.0
    assert variety.spread(np.eye(3)) == pytest.approx(1.0)
    assert variety.spread(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(2.0)
    assert variety.spread(np.array([[0.0, 0.0], [1.0, 0.0]])) == pytest.approx(1.0)


def test_self_bleu_and_compression_tell_alike_from_varied() -> None:
    assert variety.self_bleu(ALIKE) == pytest.approx(1.0)
    assert variety.self_bleu(VARIED) < 0.2
    assert variety.compression(ALIKE * 10) > 3 > variety.compression(VARIED)


def test_expected_distinct_does_not_fall_with_length() -> None:
    draw = np.random.default_rng(0)
    short, long = (
        [" ".join(f"w{i}" for i in draw.integers(0, 500, words)) for _ in range(5)]
        for words in (20, 400)
    )
    assert variety.distinct(long, 1) < 0.5 * variety.distinct(short, 1)
    for texts in (short, long):
        assert variety.expected_distinct(texts, 500) == pytest.approx(1, abs=0.05)
    assert math.isfinite(variety.expected_distinct(short, 10**9))


def test_spread_equals_the_loop_over_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - units[i] @ units[j] for i in range(7) for j in range(i)]
    assert variety.spread(vectors) == pytest.approx(np.mean(pairs))


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_texts_are_within_range(texts: list[str]) -> None:
    assert 0 <= variety.distinct(texts) <= 1
    assert variety.expected_distinct(texts, 50) >= 0
    assert variety.entropy(texts) >= 0 and variety.compression(texts) >= 0
    assert all(0 <= variety.repetition(text) <= 1 for text in texts)
    if len(texts) > 1:
        assert 0 <= variety.self_bleu(texts) <= 1


def test_wrong_arguments() -> None:
    for call in (
        lambda: variety.ngrams("a", 0),
        lambda: variety.expected_distinct(["a"], 0),
        lambda: variety.self_bleu(["a"]),
        lambda: variety.spread(np.ones((1, 3))),
        lambda: variety.spread(np.ones(3)),
    ):
        with pytest.raises(ValueError):
            call()
