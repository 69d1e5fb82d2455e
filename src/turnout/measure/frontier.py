"""Where an arm stands against the line of another family, at the same time. Pure functions.

Time is relative to the dense host (1 = as long as dense, 0.5 = half): the ratio is paired per
round of timing, so it does not move when the whole machine is slow for a while. Quality: higher
is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from turnout.measure.results import Arm, Family, Results

Point = tuple[float, float]
Status = Literal["above", "level", "below", "outside"]


@dataclass(frozen=True)
class Verdict:
    """One arm against the line of `against` at the arm's own time.

    `line` and `difference` (arm minus line) are None, and the status "outside", where the line was
    not measured: a time shorter than that of its fastest arm.
    """

    arm: str
    against: Family
    line: float | None
    difference: float | None
    status: Status


def relative_time(arm: Arm) -> float:
    """Time as a share of the dense host's."""
    return 1 / arm.speedup.value


def front(points: Iterable[Point]) -> list[Point]:
    """Points (time, quality) that no other beats in both, fastest first: quality only rises."""
    kept: list[Point] = []
    for time, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((time, quality))
    return kept


def line(results: Results, family: Family) -> list[Point]:
    """The front of a family together with the dense host, which is the uncut end of every line."""
    arms = [results.dense, *results.family(family)]
    return front((relative_time(arm), arm.quality.value) for arm in arms)


def line_at(points: Sequence[Point], time: float) -> float | None:
    """Quality of a front at `time`, interpolated between neighbours.

    More time than the slowest point buys nothing more; less than the fastest gives None, as
    nothing was measured there.
    """
    if not points or time < points[0][0]:
        return None
    for (t0, q0), (t1, q1) in pairwise(points):
        if time <= t1:
            return q0 + (q1 - q0) * (time - t0) / (t1 - t0)
    return points[-1][1]


def static_at(results: Results, time: float) -> float | None:
    """Quality that plainly cut models reach in `time` (a share of the dense host's)."""
    return line_at(line(results, "static"), time)


def verdict(results: Results, arm: Arm, against: Family = "static") -> Verdict:
    """Compare an arm with a line; "above" or "below" only beyond the arm's own interval.

    The interval of the line is not added: both read the same test examples, and what they share
    would be counted twice.
    """
    reached = line_at(line(results, against), relative_time(arm))
    if reached is None:
        return Verdict(arm.name, against, None, None, "outside")
    status: Status = "level"
    if arm.quality.low > reached:
        status = "above"
    elif arm.quality.high < reached:
        status = "below"
    return Verdict(arm.name, against, reached, arm.quality.value - reached, status)


def verdicts(results: Results, against: Family = "static") -> list[Verdict]:
    """Every routed arm, fastest first, against a line."""
    return [verdict(results, arm, against) for arm in results.family("routed")]
