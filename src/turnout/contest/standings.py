"""Who wins at equal measured time: the contenders of a comparison, over one seed or several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from turnout.errors import UserError
from turnout.files import read_json, write_json
from turnout.measure.frontier import front, line_at
from turnout.measure.results import Family, Results

SPEEDS = (1.1, 1.25, 1.5, 2.0, 3.0)
FILE = "comparison.json"
Curve = dict[float, float | None]  # speed-up -> what is had there; None where it is not as fast
Values = dict[float, list[float]]  # the same over seeds; empty where not every seed is as fast


@dataclass(frozen=True)
class Point:
    """One arm of one seed, as far as a comparison needs it; fields as in results.json.

    low, high: interval of the quality. seconds: of a pass over the timed examples. router: which
    contender it is of; place: where it decides.
    """

    arm: str
    family: Family
    router: str | None
    place: str | None
    budget: float | None
    quality: float
    low: float
    high: float
    speedup: float
    seconds: float
    share: float
    units_run: float
    flops_per_example: float


def points_of(results: Results) -> list[Point]:
    """Every arm of a measurement."""
    return [
        Point(
            arm=arm.name,
            family=arm.family,
            router=arm.router,
            place=arm.place,
            budget=arm.budget,
            quality=arm.quality.value,
            low=arm.quality.low,
            high=arm.quality.high,
            speedup=arm.speedup.value,
            seconds=arm.seconds.median,
            share=arm.share,
            units_run=arm.units_run,
            flops_per_example=arm.flops_per_example,
        )
        for arm in results.arms
    ]


@dataclass(frozen=True)
class Standing:
    """One contender, or what it is compared with: its quality at each speed-up, and how much more
    that is than cut models and random skipping have there, a value a seed.

    seconds: of training its routed stage, a value a seed; empty for what is no contender.
    """

    name: str
    quality: Values
    over_cut: Values
    over_random: Values
    seconds: list[float]

    @property
    def best(self) -> tuple[float, float] | None:
        """The speed at which it gains most over cut models, and what it gains there, a mean over
        seeds; None = it is nowhere fast enough to compare."""
        gains = {speed: statistics.fmean(each) for speed, each in self.over_cut.items() if each}
        return max(gains.items(), key=lambda pair: pair[1]) if gains else None


@dataclass(frozen=True)
class Comparison:
    """What was measured. metric: of the quality. seeds, and for each its points and the seconds of
    training by contender (None where they are not known)."""

    metric: str
    seeds: list[int]
    points: list[list[Point]]
    seconds: list[Mapping[str, float | None]]

    @property
    def standings(self) -> list[Standing]:
        """The contenders, by what they gain over cut models at their best speed."""
        each = [_curves(points) for points in self.points]
        found = []
        for name in each[0]:
            quality, over_cut, over_random = (
                _over_seeds([curves[name][what] for curves in each]) for what in range(3)
            )
            spent = [s for s in (costs.get(name) for costs in self.seconds) if s is not None]
            found.append(Standing(name, quality, over_cut, over_random, spent))
        return sorted(found, key=lambda s: s.best[1] if s.best else -math.inf, reverse=True)

    @property
    def baselines(self) -> list[Standing]:
        """The cut models, and random skipping at each place."""
        places = {p.place: None for p in self.points[0] if p.family == "random"}
        found = {"cut models": [_line(points, "static") for points in self.points]}
        for place in places:
            found[f"random, {place}"] = [_line(p, "random", place) for p in self.points]
        return [
            Standing(name, _over_seeds([_at_speeds(line) for line in lines]), {}, {}, [])
            for name, lines in found.items()
        ]

    def save(self, folder: Path) -> None:
        """Write comparison.json, whole or not at all."""
        ranked = [
            {
                "name": standing.name,
                "training_seconds": standing.seconds,
                **{
                    field: {f"{speed:g}x": v for speed, v in getattr(standing, field).items()}
                    for field in ("quality", "over_cut", "over_random")
                },
            }
            for standing in self.standings
        ]
        measured = [
            {
                "seed": seed,
                "training_seconds": dict(seconds),
                "arms": [asdict(point) for point in points],
            }
            for seed, points, seconds in zip(self.seeds, self.points, self.seconds, strict=True)
        ]
        write_json(
            folder / FILE,
            {
                "metric": self.metric,
                "speeds": list(SPEEDS),
                "standings": ranked,
                "measured": measured,
            },
        )


def load(folder: str | Path) -> Comparison:
    """What ``compare`` left in a folder. Raises UserError where it left nothing of the kind."""
    path = Path(folder) / FILE
    found = read_json(path)
    try:
        measured = found["measured"]
        return Comparison(
            found["metric"],
            [each["seed"] for each in measured],
            [[Point(**arm) for arm in each["arms"]] for each in measured],
            [each["training_seconds"] for each in measured],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no comparison that this turnout reads: {error}") from error


def merged(comparisons: Sequence[Comparison]) -> Comparison:
    """Comparisons of the same contenders with other seeds, as one."""
    return Comparison(
        comparisons[0].metric,
        [seed for each in comparisons for seed in each.seeds],
        [points for each in comparisons for points in each.points],
        [seconds for each in comparisons for seconds in each.seconds],
    )


def _curves(points: Sequence[Point]) -> dict[str, tuple[Curve, Curve, Curve]]:
    """Of each contender in one seed: quality, and its difference from cut models and from random
    skipping at its place."""
    cut = _at_speeds(_line(points, "static"))
    found = {}
    for name in dict.fromkeys(p.router for p in points if p.family == "routed"):
        place = next(p.place for p in points if p.router == name)
        own = _at_speeds(_line(points, "routed", router=name))
        chance = _at_speeds(_line(points, "random", place))
        found[name or "routed"] = (own, _less(own, cut), _less(own, chance))
    return found


def _line(
    points: Sequence[Point], family: Family, place: str | None = None, router: str | None = None
) -> list[tuple[float, float]]:
    """The front of some arms and the dense host: (time as a share of dense, quality)."""
    return front(
        (1 / p.speedup, p.quality)
        for p in points
        if p.family == "dense"
        or (p.family == family and place in (None, p.place) and router in (None, p.router))
    )


def _at_speeds(line: Sequence[tuple[float, float]]) -> Curve:
    return {speed: line_at(line, 1 / speed) for speed in SPEEDS}


def _less(one: Curve, other: Curve) -> Curve:
    return {
        speed: None if value is None or (minus := other[speed]) is None else value - minus
        for speed, value in one.items()
    }


def _over_seeds(curves: Sequence[Curve]) -> Values:
    """Values of every seed at each speed; none where not every seed has one."""
    found: Values = {}
    for speed in SPEEDS:
        values = [value for curve in curves if (value := curve[speed]) is not None]
        found[speed] = values if len(values) == len(curves) else []
    return found
