"""A measurement of several tasks as tables, for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table

from turnout.double import versions
from turnout.double.results import TasksResults


def tables(results: TasksResults) -> Group:
    """Quality by task, use of the routing layers, and time by number of tasks."""
    quality = Table(title=f"{results.model}: {results.parameters / 1e6:,.1f} M parameters")
    for column in ("task", "metric", "rows", "quality", "95 % interval", "use of routing layers"):
        quality.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task in results.tasks:
        quality.add_row(
            task.name,
            task.metric,
            f"{task.rows:,}",
            f"{task.quality:.3f}",
            f"{task.low:.3f} to {task.high:.3f}",
            " ".join(f"{use:.2f}" for use in task.use),
        )
    passes = Table(
        title="One pass that answers several tasks",
        caption="Time as a multiple of a pass of the plain backbone with one head, and as a part "
        "of what models of one task each would take. Beside the backbone's own, the model has "
        f"{results.added / 1e6:,.2f} M parameters.",
    )
    for column in ("tasks", "time", "95 % interval", "of separate", "seconds", "GFLOPs a text"):
        passes.add_column(column, justify="right")
    plain = f"{results.plain_seconds:.3f}", f"{results.plain_gflops:.2f}"
    passes.add_row("plain", "1.00x", "", "", *plain)
    for each in results.passes:
        passes.add_row(
            str(each.tasks),
            f"{each.ratio:.2f}x",
            f"{each.low:.2f} to {each.high:.2f}",
            f"{each.ratio / each.tasks:.2f}",
            f"{each.seconds:.3f}",
            f"{each.gflops:.2f}",
        )
    return Group(quality, passes, *([_transfer(results)] if results.transfer else []))


def _transfer(results: TasksResults) -> Table:
    matrix = results.transfer or {}
    shown = Table(
        title="Transfer",
        caption="Points of validation score that a task (row) gains by training with another.",
    )
    shown.add_column("")
    for name in matrix:
        shown.add_column(name, justify="right")
    for name, gains in matrix.items():
        cells = [f"{100 * gains[other]:+.1f}" if other in gains else "" for other in matrix]
        shown.add_row(name, *cells)
    return shown


def versions_table(run: Path) -> Table:
    """The versions of a run's model."""
    shown = Table(title=f"{run}: version {versions.current(run)} is in use")
    for column in ("version", "from", "task", "new rows", "old test rows", "new test rows", ""):
        shown.add_column(column)
    for version in versions.every(run):
        facts = versions.facts(run, version)
        if not facts:
            shown.add_row(str(version), "", "", "", "", "", "as trained")
            continue
        old = ", ".join(
            f"{name} {before:.3f} -> {facts['after'][name]:.3f}"
            for name, before in facts["before"].items()
        )
        new = f"{facts['new_before']:.3f} -> {facts['new_after']:.3f}"
        shown.add_row(
            str(version),
            str(facts["from"]),
            facts["task"],
            f"{facts['rows']:,}",
            old,
            new,
            ""
            if facts["accepted"]
            else f"refused: {versions.refusal(facts['fallen'], facts['margin'])}",
        )
    return shown
