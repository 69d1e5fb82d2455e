"""Who wins at equal measured time, and the tables of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from turnout import UserError, contest


def point(arm: str, family: str, time: float, quality: float, **fields: str) -> contest.Point:
    return contest.Point(
        **{"router": None, "place": None, **fields},  # type: ignore[arg-type]
        arm=arm,
        family=family,  # type: ignore[arg-type]
        budget=None,
        quality=quality,
        low=quality - 0.01,
        high=quality + 0.01,
        speedup=1 / time,
        seconds=time,
        share=time,
        units_run=6 * time,
        flops_per_example=1e9 * time,
    )


def seed_of(good: float, fast: float) -> list[contest.Point]:
    """Dense, a cut, and two contenders at different places with their random arms."""
    return [
        point("dense", "dense", 1.0, 0.9),
        point("first-1", "static", 0.5, 0.8),
        point("good-50", "routed", 0.5, good, router="good", place="layers"),
        point("poor-50", "routed", fast, 0.7, router="poor", place="heads"),
        point("random-layers-50", "random", 0.5, 0.5, place="layers"),
        point("random-heads-50", "random", 0.4, 0.65, place="heads"),
    ]


def test_standings_are_taken_at_equal_time_over_seeds() -> None:
    seeds = [seed_of(0.85, 0.5), seed_of(0.83, 0.6)]
    found = contest.Comparison("accuracy", [0, 1], seeds, [{"good": 8.0}, {"good": 10.0}])
    good, poor = found.standings
    assert (good.name, poor.name) == ("good", "poor")
    assert good.quality[2.0] == pytest.approx([0.85, 0.83])
    assert good.over_cut[2.0] == pytest.approx([0.05, 0.03])
    assert good.over_random[2.0] == pytest.approx([0.35, 0.33])
    assert good.quality[1.25] == pytest.approx([0.9 - 0.05 * 0.4, 0.9 - 0.07 * 0.4])
    assert good.seconds == [8.0, 10.0] and poor.seconds == []
    assert poor.quality[2.0] == [] and poor.quality[1.5] != []  # in one seed it is not as fast
    at = 1 / 1.5  # random skipping of its own place, which costs less than that of the other
    drawn = 0.65 + 0.25 * (at - 0.4) / 0.6
    assert poor.over_random[1.5][0] == pytest.approx(poor.quality[1.5][0] - drawn)
    cut, layers, heads = found.baselines
    assert [b.name for b in (cut, layers, heads)] == [
        "cut models",
        "random, layers",
        "random, heads",
    ]
    assert cut.quality[2.0] == pytest.approx([0.8, 0.8])
    assert layers.quality[3.0] == [] and heads.quality[2.0] != []
    assert good.best == (2.0, pytest.approx(0.04)) and poor.best is not None
    assert poor.best[0] == 1.1 and poor.best[1] < 0  # the less it skips, the less it loses
    grid = contest.ranking(found)
    assert [row[0] for row in grid.rows][:3] == ["good", "poor", "cut models"]
    assert grid.rows[0][4:] == ["0.840 (0.830 to 0.850)\n+4.0 / +34.0", "not as fast", "9 s"]
    assert "| good | " in grid.markdown() and "<br>" in grid.markdown()
    dense = contest.arms(found).rows[0]
    assert dense == [
        "dense",
        "0.900 (0.900 to 0.900)",
        "0.900 to 0.900",
        "1.00x",
        "1.000",
        "1",
        "6.0",
    ]


def test_what_is_nowhere_as_fast_comes_last() -> None:
    points = [
        *seed_of(0.85, 0.5),
        point("slow-50", "routed", 0.99, 0.95, router="slow", place="layers"),
    ]
    found = contest.Comparison("accuracy", [0], [points], [{}])
    assert [standing.name for standing in found.standings] == ["good", "poor", "slow"]
    assert found.standings[-1].best is None


def test_a_file_that_is_no_comparison_is_named(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"metric": "accuracy"}')
    with pytest.raises(UserError, match=r"comparison\.json is no comparison .* 'measured'"):
        contest.load(tmp_path)
