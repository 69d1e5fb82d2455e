"""Quality against time as inline SVG, in colours that the page decides (light or dark)."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from turnout.measure.frontier import line, relative_time
from turnout.measure.labels import place
from turnout.measure.results import Arm, Family, Results

# Matplotlib wants a colour now, the page wants to choose later: each stand-in below is written
# into the SVG and then replaced by the CSS variable of that name.
STAND_INS = {
    "dense": "#0d0001",
    "routed": "#0d0002",
    "random": "#0d0003",
    "static": "#0d0004",
    "noise": "#0d0009",
    "ink": "#0d0005",
    "faint": "#0d0006",
    "grid": "#0d0007",
    "card": "#0d0008",
}
MARKERS: dict[Family, str] = {
    "static": "s",
    "random": "^",
    "noise": "v",
    "routed": "o",
    "dense": "D",
}
SIZE = 10.5
LONGEST = 18  # letters of a name beside its point; the table has it whole
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": SIZE,
    "text.parse_math": False,  # a name with two dollar signs is a name, not a formula
}


def frontier_svg(results: Results, width: float = 9.6, height: float = 4.8) -> str:
    """An <svg> element: every arm, its intervals, and the lines to beat. Inches decide text size.

    x is time as a share of the dense host's (paired), y the headline metric; both axes are linear.
    """
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": f"frontier {width}"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        for family in ("static", "random"):
            if results.family(family):
                times, qualities = zip(*line(results, family), strict=True)
                axes.plot(times, qualities, color=STAND_INS[family], lw=1.6, ls=_dash(family))
        routed = results.family("routed")
        axes.plot(
            [relative_time(arm) for arm in routed],
            [arm.quality.value for arm in routed],
            color=STAND_INS["routed"],
            lw=2.4,
        )
        for family in MARKERS:
            for arm in results.family(family):
                _point(axes, arm)
        _dress(axes, results, width)
        _name_points(figure, axes, results)
        return _themed(figure)


def _dash(family: Family) -> str:
    return "--" if family == "static" else ":"


def _point(axes: Axes, arm: Arm) -> None:
    colour, x, y = STAND_INS[arm.family], relative_time(arm), arm.quality.value
    axes.hlines(y, 1 / arm.speedup.high, 1 / arm.speedup.low, color=colour, lw=1.2, alpha=0.7)
    axes.vlines(x, arm.quality.low, arm.quality.high, color=colour, lw=1.2, alpha=0.7)
    size = 8 if arm.family in ("routed", "dense") else 7
    axes.plot(
        x, y, MARKERS[arm.family], ms=size, color=colour, mec=STAND_INS["card"], mew=1.2, zorder=5
    )


def _name_points(figure: Figure, axes: Axes, results: Results) -> None:
    """Budgets beside routed points, names beside cut models; random points stay unnamed."""
    figure.draw_without_rendering()  # settles the layout, so that places are known
    named: tuple[Family, ...] = ("dense", "static", "noise", "routed")
    arms = [arm for family in named for arm in results.family(family)]
    names = [_name(arm) for arm in arms]
    to_points = axes.transData.transform
    scale = 72 / figure.dpi
    places_P2 = to_points([_at(arm) for arm in arms]) * scale
    drawn = [to_points(_samples(np.asarray(shape.get_xydata()))) * scale for shape in axes.lines]
    bars = [path for bar in axes.collections for path in bar.get_paths()]
    drawn += [to_points(_samples(np.asarray(path.vertices))) * scale for path in bars]
    sizes = [(0.62 * SIZE * len(name), 1.15 * SIZE) for name in names]
    frame = np.asarray(axes.bbox.extents) * scale
    offsets = place(places_P2.tolist(), sizes, np.concatenate(drawn), tuple(frame))
    for arm, name, offset in zip(arms, names, offsets, strict=True):
        axes.annotate(
            name,
            _at(arm),
            offset,
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            color=STAND_INS[arm.family],
            in_layout=False,  # the places were found for the layout as it is
        )


def _at(arm: Arm) -> tuple[float, float]:
    return relative_time(arm), arm.quality.value


def _name(arm: Arm) -> str:
    if arm.family == "routed" and arm.budget is not None:
        return f"{arm.budget * 100:.0f} %"
    return arm.name if len(arm.name) <= LONGEST else arm.name[: LONGEST - 1] + "…"


def _samples(corners_N2: np.ndarray) -> np.ndarray:
    """Points along a line, close enough that no label slips between them."""
    steps = np.linspace(0, 1, 80)[:, None]
    pieces = [a + (b - a) * steps for a, b in pairwise(corners_N2)]
    return np.concatenate([corners_N2, *pieces])


def _dress(axes: Axes, results: Results, figure_width: float) -> None:
    axes.set_xlabel("time, share of the dense model's  (← faster)", color=STAND_INS["faint"])
    axes.set_title(
        f"{results.task.headline} (↑ better)", loc="left", fontsize=SIZE, color=STAND_INS["faint"]
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f} %")
    axes.margins(x=0.7 / figure_width, y=0.12)  # room for labels, the same in inches
    axes.grid(color=STAND_INS["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=STAND_INS["faint"], pad=6)


def _themed(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside HTML the namespaces are known; without them the page names no address at all.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    svg = re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--sans)", svg)
    for name, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg
