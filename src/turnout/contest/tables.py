"""A comparison as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table
from rich.text import Text

from turnout.contest.standings import SPEEDS, Comparison, Point, Standing
from turnout.measure.stats import mean_interval

NOT_AS_FAST = "not as fast"


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn; a cell may have two lines. note: what stands below it."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    def rich(self) -> Table:
        """For the terminal."""
        shown = Table(title=Text(self.title), caption=Text(self.note))
        for number, heading in enumerate(self.head):
            shown.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            shown.add_row(*map(Text, row))
        return shown

    def markdown(self) -> str:
        """For a page."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        drawn = ["| " + " | ".join(c.replace("\n", "<br>") for c in line) + " |" for line in lines]
        return "\n".join([f"{self.title}. {self.note}", "", *drawn, ""])


def ranking(comparison: Comparison) -> Grid:
    """Quality at equal measured time, in the order of the standings, the baselines below."""
    rows = []
    for standing in [*comparison.standings, *comparison.baselines]:
        spent = f"{fmean(standing.seconds):,.0f} s" if standing.seconds else ""
        rows.append([standing.name, *(_cell(standing, speed) for speed in SPEEDS), spent])
    dense = [p.quality for points in comparison.points for p in points if p.family == "dense"]
    return Grid(
        f"{comparison.metric} at equal measured time; dense {_spread(dense)}",
        "Below the quality: points above cut models / above random skipping of the same time and "
        "place. The order is that of the largest gain over cut models." + _seeds(comparison),
        ["router", *(f"{speed:g}x" for speed in SPEEDS), "training"],
        rows,
    )


def arms(comparison: Comparison) -> Grid:
    """What every arm was measured to do."""
    names = dict.fromkeys(p.arm for points in comparison.points for p in points)
    rows = []
    for name in names:
        found = [p for points in comparison.points for p in points if p.arm == name]
        rows.append(
            [
                name,
                _spread([p.quality for p in found]),
                "{:.3f} to {:.3f}".format(*_interval(found)),
                f"{fmean(p.speedup for p in found):.2f}x",
                f"{fmean(p.seconds for p in found):.3f}",
                f"{fmean(p.flops_per_example for p in found) / 1e9:.3g}",
                f"{fmean(p.units_run for p in found):.1f}",
            ]
        )
    return Grid(
        f"Every arm; {comparison.metric}",
        f"The interval is that of {_source(comparison)}. Seconds are those of a pass over the "
        "timed examples; GFLOPs and layers (whole layers' worth of units) are those of an example."
        + _seeds(comparison),
        ["arm", "quality", "95 % interval", "speed", "seconds", "GFLOPs", "layers"],
        rows,
    )


def _cell(standing: Standing, speed: float) -> str:
    quality = standing.quality[speed]
    if not quality:
        return NOT_AS_FAST
    if not standing.over_cut:
        return _spread(quality)
    cut, chance = _points(standing.over_cut[speed]), _points(standing.over_random[speed])
    return f"{_spread(quality)}\n{cut} / {chance}"


def _interval(found: Sequence[Point]) -> tuple[float, float]:
    """Of a quality: over seeds, or where there is one, over the test examples."""
    if len(found) == 1:
        return found[0].low, found[0].high
    return mean_interval([p.quality for p in found])


def _source(comparison: Comparison) -> str:
    several = "the mean over seeds (Student's t)"
    return "the test examples" if len(comparison.seeds) == 1 else several


def _seeds(comparison: Comparison) -> str:
    count = len(comparison.seeds)
    return "" if count == 1 else f" Means over {count} seeds, qualities with their range."


def _spread(values: Sequence[float]) -> str:
    """Mean, and the range of several."""
    mean = f"{fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _points(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):+.1f}" if values else "-"
