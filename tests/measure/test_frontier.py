from __future__ import annotations

from collections.abc import Callable

import pytest

from turnout.measure.frontier import front, line, line_at, static_at, verdict, verdicts
from turnout.measure.results import Results

LINE = [(0.25, 0.5), (0.5, 0.75), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("time", "quality"),
    [
        (0.25, 0.5),
        (0.375, 0.625),
        (0.5, 0.75),
        (0.75, 0.875),
        (1.0, 1.0),
        (1.5, 1.0),
        (0.2, None),
    ],
)
def test_interpolation_is_exact(time: float, quality: float | None):
    assert line_at(LINE, time) == quality


def test_empty_line_says_nothing():
    assert line_at([], 0.5) is None


def test_front_drops_what_is_beaten_in_both():
    assert front([(1.0, 1.0), (0.6, 0.7), (0.5, 0.75), (0.25, 0.5), (0.5, 0.6)]) == LINE
    assert front([(1.0, 0.8), (0.5, 0.9)]) == [(0.5, 0.9)]


def simple(raw: dict, value: float, low: float, high: float, speed: float = 2.0) -> Results:
    """Dense at (1, 1), one cut model at (0.25, 0.5), one routed arm."""

    def arm(name: str, family: str, at: float, value: float, low: float, high: float) -> dict:
        return {
            **raw["arms"][0],
            "name": name,
            "family": family,
            "quality": {"metric": "accuracy", "value": value, "low": low, "high": high},
            "speedup": {"value": at, "low": at, "high": at},
        }

    arms = [
        arm("dense", "dense", 1, 1, 1, 1),
        arm("cut", "static", 4, 0.5, 0.5, 0.5),
        arm("routed", "routed", speed, value, low, high),
    ]
    return Results.model_validate({**raw, "arms": arms, "units": {}, "heatmap": None})


@pytest.mark.parametrize(
    ("value", "low", "high", "status"),
    [
        (0.75, 0.7, 0.8, "above"),
        (0.7, 0.6, 0.8, "level"),
        (0.6, 0.55, 0.65, "below"),
    ],
)
def test_above_and_below_only_beyond_the_interval(
    raw: dict, value: float, low: float, high: float, status: str
):
    results = simple(raw, value, low, high)
    assert static_at(results, 0.5) == pytest.approx(2 / 3)
    found = verdict(results, results.family("routed")[0])
    assert found.status == status
    assert found.line == pytest.approx(2 / 3)
    assert found.difference == pytest.approx(value - 2 / 3)


def test_faster_than_all_cut_models_is_not_compared(raw: dict):
    results = simple(raw, 0.9, 0.9, 0.9, speed=5)
    found = verdict(results, results.family("routed")[0])
    assert (found.status, found.line, found.difference) == ("outside", None, None)


def test_verdicts_follow_the_family_and_the_line(results: Results):
    assert [found.arm for found in verdicts(results)] == [
        "routed-25",
        "routed-35",
        "routed-50",
        "routed-75",
    ]
    against_random = verdicts(results, "random")
    assert {found.status for found in against_random} <= {"above", "outside"}
    assert all(found.against == "random" for found in against_random)


def test_dominated_cut_models_do_not_lower_the_line(make: Callable[..., Results]):
    results = make()
    other = next(arm for arm in results.arms if arm.name == "every-other")
    assert other.quality.value not in [quality for _, quality in line(results, "static")]
