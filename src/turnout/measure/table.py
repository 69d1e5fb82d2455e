"""The arms as a table: for the terminal by rich, and cell by cell for the report."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from turnout.measure.frontier import verdict
from turnout.measure.results import Arm, Family, Results
from turnout.measure.words import kept, percent, points

FAMILIES: tuple[Family, ...] = ("dense", "routed", "noise", "random", "static")
SIGNS = {"above": "▲", "level": "≈", "below": "▼"}


class Cell(NamedTuple):
    main: str
    spread: str = ""


def ordered(results: Results) -> list[Arm]:
    """Dense first, then family by family, slowest first: the way budgets are read."""
    return [arm for family in FAMILIES for arm in reversed(results.family(family))]


def cells(results: Results, arm: Arm) -> dict[str, Cell]:
    """Heading -> cell, speed-up and quality first."""
    speed, quality, seconds = arm.speedup, arm.quality, arm.seconds
    memory = arm.peak_memory_bytes
    return {
        "arm": Cell(arm.name, arm.family),
        "speed-up": Cell(f"{speed.value:.2f}×", f"{speed.low:.2f} to {speed.high:.2f}"),
        quality.metric: Cell(f"{quality.value:.3f}", f"{quality.low:.3f} to {quality.high:.3f}"),
        **_perplexity(arm),
        "kept": Cell(percent(kept(results, arm)), _change(arm)),
        "against cutting": _against(results, arm),
        "work": Cell(percent(arm.share, 0), "of what may be skipped" if arm.budget else ""),
        "layers run": Cell(f"{arm.units_run:.2f}", f"of {arm.units_total:g}"),
        "GFLOPs": Cell(f"{arm.flops_per_example / 1e9:.3g}", "an example"),
        "seconds": Cell(f"{seconds.median:.3g}", f"{seconds.low:.3g} to {seconds.high:.3g}"),
        "memory": Cell("–" if memory is None else f"{memory / 1e6:,.0f} MB"),
        "parameters": Cell(f"{arm.parameters / 1e6:.1f} M"),
    }


def table(results: Results) -> Table:
    """All arms for the terminal; names are shown as they are, never read as markup."""
    shown = Table(title=Text(f"{results.model}, {results.task.kind}, {results.dtype}"))
    rows = [cells(results, arm) for arm in ordered(results)]
    for number, heading in enumerate(rows[0]):
        shown.add_column(Text(heading), justify="right" if number else "left")
    for row in rows:
        shown.add_row(*(Text.assemble(c.main, (f"\n{c.spread}", "dim")) for c in row.values()))
    return shown


def _perplexity(arm: Arm) -> dict[str, Cell]:
    """Of language models, beside their quality: fewer is better."""
    found, bits = arm.report.get("perplexity"), arm.report.get("bits_per_byte")
    if not isinstance(found, float) or not isinstance(bits, float):
        return {}
    return {"perplexity": Cell(f"{found:.2f}", f"{bits:.3f} bits per byte")}


def _change(arm: Arm) -> str:
    """The interval of the difference from dense, in points."""
    change = arm.to_dense
    if change is None or arm.family == "dense":
        return ""
    return f"{100 * change.low:+.1f} to {100 * change.high:+.1f}".replace("-", "−")


def _against(results: Results, arm: Arm) -> Cell:
    if arm.family not in ("routed", "random", "noise"):
        return Cell("–")
    found = verdict(results, arm)
    if found.difference is None:
        return Cell("–", "none as fast")
    sign = "+" if found.difference >= 0 else "−"
    spread = {"above": "above", "level": "within the error", "below": "below"}[found.status]
    return Cell(f"{SIGNS[found.status]} {sign}{points(found.difference)}", spread)
