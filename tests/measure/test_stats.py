from __future__ import annotations

import numpy as np
import pytest

from turnout.measure.stats import (
    bootstrap_difference,
    bootstrap_interval,
    mean_interval,
    median_interval,
    ratio_interval,
)


def accuracy(total_K: np.ndarray) -> float:
    return total_K[0] / total_K[1]


def f1(total_K: np.ndarray) -> float:
    right, predicted, gold = total_K
    return 2 * right / (predicted + gold) if predicted + gold else 0.0


def counts(correct: np.ndarray) -> np.ndarray:
    return np.stack([correct, np.ones_like(correct)], axis=1)


def test_interval_of_a_mean_is_near_its_standard_error():
    correct = (np.random.default_rng(1).random(2000) < 0.8).astype(int)
    value, low, high = bootstrap_interval(counts(correct), accuracy, n=2000)
    error = np.sqrt(value * (1 - value) / len(correct))
    assert value == correct.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert low < value < high


def test_interval_widens_with_level_and_repeats_with_seed():
    rows = counts(np.arange(200) % 3 == 0)
    wide, narrow = (bootstrap_interval(rows, accuracy, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_interval(rows, accuracy, seed=3) == bootstrap_interval(rows, accuracy, seed=3)
    assert bootstrap_interval(rows, accuracy, seed=3) != bootstrap_interval(rows, accuracy, seed=4)


def test_metric_is_computed_from_sums_not_averaged_over_examples():
    rows = np.array([[9, 10, 10], [0, 0, 1]] * 50)
    assert bootstrap_interval(rows, f1).value == pytest.approx(2 * 450 / (500 + 550))


def test_nothing_to_resample_gives_a_point():
    assert bootstrap_interval(counts(np.ones(30)), accuracy) == (1.0, 1.0, 1.0)


def test_pairing_removes_what_two_models_share():
    shared = (np.random.default_rng(0).random(1000) < 0.7).astype(int)
    worse = shared.copy()
    worse[np.flatnonzero(shared)[:20]] = 0
    paired = bootstrap_difference(counts(shared), counts(worse), accuracy)
    alone = bootstrap_interval(counts(shared), accuracy)
    assert paired.value == pytest.approx(0.02)
    assert 0 < paired.low < 0.02 < paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 2
    assert bootstrap_difference(counts(shared), counts(shared), accuracy) == (0, 0, 0)


@pytest.mark.parametrize("rows", [np.zeros((0, 2)), np.zeros(3)])
def test_counts_without_examples_are_refused(rows: np.ndarray):
    with pytest.raises(ValueError, match="examples"):
        bootstrap_interval(rows, accuracy)


def test_pairs_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        bootstrap_difference(np.ones((3, 2)), np.ones((4, 2)), accuracy)


@pytest.mark.parametrize(
    ("count", "place"),
    # published places of the 95 % sign-test interval of a median
    [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (20, 6), (25, 8)],
)
def test_median_interval_takes_the_known_order_statistics(count: int, place: int):
    values = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))
    assert median_interval(values.tolist()) == ((count + 1) / 2, place, count + 1 - place)


def test_median_interval_needs_values():
    with pytest.raises(ValueError, match="no rounds"):
        median_interval([])


def test_ratio_is_paired_per_round():
    spell = np.array([1.0, 5.0, 1.2, 9.0, 1.1, 2.0, 1.0])
    assert ratio_interval((2 * spell).tolist(), spell.tolist()) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="rounds differ"):
        ratio_interval([1.0], [1.0, 2.0])


def test_interval_of_a_mean_over_seeds_is_students():
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    random = np.random.default_rng(0).normal(5.0, 1.0, (2000, 3))
    inside = [low <= 5.0 <= high for low, high in map(mean_interval, random.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    with pytest.raises(ValueError, match="needs two"):
        mean_interval([1.0])
