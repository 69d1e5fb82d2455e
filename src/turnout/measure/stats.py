"""Intervals: how sure a number is. Pure functions.

N examples, K counts an example (the sufficient statistics of a metric), R rounds of timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

Score = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def bootstrap_interval(
    counts_NK: np.ndarray, score: Score, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap of `score(sum of counts)` over examples.

    `counts_NK` holds one row an example; resampling rows keeps metrics that are not means (F1)
    right, because the metric is computed from the resampled sums. ValueError without examples.
    """
    counts_NK = _checked(counts_NK)
    draws = [score(total_K) for total_K in _resampled_sums(counts_NK, n, seed)]
    return Interval(float(score(counts_NK.sum(axis=0))), *_percentiles(draws, level))


def bootstrap_difference(
    counts_NK: np.ndarray,
    other_NK: np.ndarray,
    score: Score,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Score of the first minus score of the second, both on the same resampled examples.

    Two models read the same test set, so their errors are alike; pairing cancels that part.
    ValueError when the shapes differ or there are no examples.
    """
    counts_NK, other_NK = _checked(counts_NK), _checked(other_NK)
    if counts_NK.shape != other_NK.shape:
        raise ValueError(f"paired counts differ in shape: {counts_NK.shape}, {other_NK.shape}")
    k = counts_NK.shape[1]
    both = np.concatenate([counts_NK, other_NK], axis=1)
    draws = [score(sums[:k]) - score(sums[k:]) for sums in _resampled_sums(both, n, seed)]
    value = score(counts_NK.sum(axis=0)) - score(other_NK.sum(axis=0))
    return Interval(float(value), *_percentiles(draws, level))


def mean_interval(values_R: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, of seeds or other repeats. ValueError for fewer than two."""
    if len(values_R) < 2:
        raise ValueError("an interval over repeats needs two of them at least")
    values = np.asarray(values_R, dtype=np.float64)
    error = values.std(ddof=1) / len(values) ** 0.5
    reach = error * float(student.ppf(0.5 + level / 2, len(values) - 1))
    return float(values.mean() - reach), float(values.mean() + reach)


def median_interval(values_R: Sequence[float], level: float = 0.95) -> Interval:
    """Median of a few rounds and the order statistics that cover it with at least `level`.

    Exact for any distribution: the k-th smallest and k-th largest of R values miss the true
    median with chance 2 * P(Binomial(R, 1/2) < k). Below 6 rounds no pair reaches 95 %;
    the smallest and the largest are given then. ValueError without values.
    """
    ordered = np.sort(np.asarray(values_R, dtype=np.float64))
    count = len(ordered)
    if count == 0:
        raise ValueError("no rounds to take the median of")
    k = 1
    while k < count - k and _missed(count, k + 1) <= 1 - level:
        k += 1
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[count - k]))


def ratio_interval(
    numerator_R: Sequence[float], denominator_R: Sequence[float], level: float = 0.95
) -> Interval:
    """Median of the per-round ratios with its interval, e.g. dense seconds over routed seconds.

    Round r of one is divided by round r of the other, so that a slow spell of the machine, which
    hits both, cancels. ValueError when the numbers of rounds differ.
    """
    if len(numerator_R) != len(denominator_R):
        raise ValueError(f"rounds differ: {len(numerator_R)} and {len(denominator_R)}")
    top, bottom = np.asarray(numerator_R, float), np.asarray(denominator_R, float)
    return median_interval((top / bottom).tolist(), level)


def _missed(count: int, k: int) -> float:
    return 2 * sum(comb(count, i) for i in range(k)) / 2**count


def _checked(counts_NK: np.ndarray) -> np.ndarray:
    counts_NK = np.asarray(counts_NK, dtype=np.float64)
    if counts_NK.ndim != 2 or len(counts_NK) == 0:
        raise ValueError(f"counts must be (examples, k) with examples, found {counts_NK.shape}")
    return counts_NK


def _resampled_sums(counts_NK: np.ndarray, n: int, seed: int):
    rng = np.random.default_rng(seed)
    size = len(counts_NK)
    for _ in range(n):
        # how often each example was drawn, times its counts: no (n, N) array is ever held
        yield np.bincount(rng.integers(size, size=size), minlength=size) @ counts_NK


def _percentiles(draws: list[float], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
