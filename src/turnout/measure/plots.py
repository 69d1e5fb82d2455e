"""Quality against time as inline SVG, in colours that the page decides (light or dark)."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from turnout.measure.frontier import line, relative_time
from turnout.measure.results import Arm, Family, Results

# Matplotlib wants a colour now, the page wants to choose later: each stand-in below is written
# into the SVG and then replaced by the CSS variable of that name.
STAND_INS = {
    "dense": "#0d0001",
    "routed": "#0d0002",
    "random": "#0d0003",
    "static": "#0d0004",
    "ink": "#0d0005",
    "faint": "#0d0006",
    "grid": "#0d0007",
    "card": "#0d0008",
}
MARKERS: dict[Family, str] = {"static": "s", "random": "^", "routed": "o", "dense": "D"}
LABELS: dict[Family, tuple[float, float, str, str]] = {  # offset in points, alignment
    "routed": (-6, 7, "right", "bottom"),
    "static": (7, -7, "left", "top"),
    "dense": (0, 10, "right", "bottom"),
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
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
    if arm.family in LABELS:
        dx, dy, ha, va = LABELS[arm.family]
        label = f"{arm.budget * 100:.0f} %" if arm.family == "routed" and arm.budget else arm.name
        axes.annotate(
            label, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, color=colour
        )


def _dress(axes: Axes, results: Results, figure_width: float) -> None:
    axes.set_xlabel("time, share of the dense model's  (← faster)", color=STAND_INS["faint"])
    axes.set_title(
        f"{results.task.headline} (↑ better)", loc="left", fontsize=10.5, color=STAND_INS["faint"]
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
