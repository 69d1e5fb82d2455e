from __future__ import annotations

from collections.abc import Callable

import pytest

from turnout.measure.results import Results
from turnout.measure.words import headline, headline_arm, kept


def shifted(raw: dict, by: float = 0.0, speed: float | None = None) -> Results:
    """The routed arms, better or worse by a number of points and at another speed."""
    for arm in raw["arms"]:
        if arm["family"] == "routed":
            for key in ("value", "low", "high"):
                arm["quality"][key] += by / 100
            if speed is not None:
                arm["speedup"] = {"value": speed, "low": speed * 0.97, "high": speed * 1.02}
    return Results.model_validate(raw)


def test_the_fastest_arm_that_keeps_quality_is_told(results: Results):
    arm = headline_arm(results)
    assert arm is not None and arm.name == "routed-50"
    assert kept(results, arm) == pytest.approx(0.9021 / 0.9075)
    title = headline(results).title
    assert title.startswith("Routing keeps 99.4\u00a0% of the accuracy at 1.8× the speed")
    assert "about as well" in title


def test_losing_to_a_cut_model_is_in_the_title(raw: dict):
    found = headline(shifted(raw, by=-2))
    assert found.arm is not None and found.arm.name == "routed-75"
    assert "plainly cutting the model does better, by 1." in found.title
    assert any("below plainly cut models" in detail for detail in found.details)


def test_winning_is_said_in_points(raw: dict):
    title = headline(shifted(raw, by=2)).title
    assert "points above a cut model as fast" in title and "better" not in title


@pytest.mark.parametrize(
    ("speed", "words"), [(1.0, "saves no time"), (0.8, "saves no time, it costs time")]
)
def test_no_speed_is_claimed_when_the_interval_holds_one(raw: dict, speed: float, words: str):
    title = headline(shifted(raw, speed=speed)).title
    assert words in title and "the speed" not in title


def test_missing_comparisons_are_open_not_won(raw: dict, make: Callable[..., Results]):
    arms = [arm for arm in raw["arms"] if arm["family"] in ("dense", "routed")]
    found = headline(make(arms=arms))
    assert "cut" not in found.title
    assert sum("comparison is open" in detail for detail in found.details) == 2


def test_nothing_routed(raw: dict, make: Callable[..., Results]):
    arms = [arm for arm in raw["arms"] if arm["family"] != "routed"]
    found = headline(make(arms=arms, units={}, heatmap=None))
    assert found.arm is None and "Nothing was routed" in found.title
