"""Diversity against perplexity as an SVG: the arms, and which of them no other one beats."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from turnout.errors import UserError
from turnout.files import write_text
from turnout.generation.vary import VaryResults, VaryRow

# ink, grid and the first colours are those of the report (turnout.measure.style), on light paper
INK, FAINT, GRID = "#23272b", "#646b70", "#e8e6df"
COLOURS = ("#0b7a6b", "#ad6210", "#3d5a98", "#9b3a6a", "#767c88", "#6d7d1c")
MARKERS = "osD^vP"
LOW_IS_VARIED = ("self_bleu", "compression", "repetition_4")
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "variety",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,
}


def varied(row: VaryRow, measure: str) -> tuple[float, float, float]:
    """A measure of an arm and its interval, turned so that high is varied. Raises UserError for one
    that was not taken."""
    if measure not in row.diversity:
        raise UserError(f"no measure {measure!r} here; there are {', '.join(row.diversity)}")
    found = row.diversity[measure]
    if measure not in LOW_IS_VARIED:
        return found.value, found.low, found.high
    return -found.value, -found.high, -found.low


def frontier(rows: Sequence[VaryRow], measure: str) -> list[VaryRow]:
    """The arms that no other one beats in both perplexity and diversity, likeliest texts first."""
    best: list[VaryRow] = []
    for row in sorted(rows, key=lambda r: (r.perplexity.value, -varied(r, measure)[0])):
        if not best or varied(row, measure)[0] > varied(best[-1], measure)[0]:
            best.append(row)
    return best


def picture(results: VaryResults, path: str | Path, measure: str = "distinct_2") -> Path:
    """Write the SVG. Raises UserError without rows, or for a measure that was not taken."""
    if not results.rows:
        raise UserError("there are no arms to draw")
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        axes = figure.add_subplot()
        for place, kind in enumerate(dict.fromkeys(row.kind for row in results.rows)):
            _arm(axes, [r for r in results.rows if r.kind == kind], measure, place)
        line = frontier(results.rows, measure)
        axes.plot(
            [r.perplexity.value for r in line],
            [varied(r, measure)[0] for r in line],
            color=FAINT, lw=1.2, ls=":", zorder=1,
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("perplexity under the dense host  (← likelier texts)", color=FAINT)
        turned = " (turned)" if measure in LOW_IS_VARIED else ""
        axes.set_title(f"{measure}{turned} (↑ more varied)", loc="left", fontsize=10.5, color=FAINT)
        axes.grid(color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0, labelcolor=FAINT)
        axes.legend(frameon=False, labelcolor=INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())
    return Path(path)


def _arm(axes: Any, rows: list[VaryRow], measure: str, place: int) -> None:
    """One kind: its values in their order, with intervals and names."""
    rows = sorted(rows, key=lambda row: row.value)
    colour = COLOURS[place % len(COLOURS)]
    points = [(row.perplexity.value, varied(row, measure)[0]) for row in rows]
    for row, (x, y) in zip(rows, points, strict=True):
        _, low, high = varied(row, measure)
        axes.hlines(y, row.perplexity.low, row.perplexity.high, color=colour, lw=1, alpha=0.5)
        axes.vlines(x, low, high, color=colour, lw=1, alpha=0.5)
        axes.annotate(
            f"{row.value:g}", (x, y), (6, 5), textcoords="offset points", color=colour, fontsize=9
        )
    axes.plot(
        *zip(*points, strict=True),
        color=colour, lw=1.6, marker=MARKERS[place % len(MARKERS)], ms=7, mec="white",
        label=rows[0].kind,
    )  # fmt: skip
