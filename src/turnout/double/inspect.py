"""`turnout inspect` with a run of several tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from turnout.double import versions
from turnout.double.run import open_tasks_run
from turnout.double.table import versions_table
from turnout.hosts.tasks_model import TasksModel
from turnout.inspect import facts_table, routed_tables
from turnout.units.task_heads import NAMED


def inspect_tasks(path: str | Path) -> Group:
    """Its tasks and their heads, its routers, and its versions, if it has several. Raises UserError
    where it is not a run of tasks, or its training did not finish."""
    run = open_tasks_run(path)
    model = run.load()
    facts = {
        "run": str(run.path),
        "started from": run.recipe.model,
        "strategy": run.recipe.train.strategy,
    }
    if hasattr(model, "turnout"):
        about = routed_tables(facts, model)
    else:
        about = Group(facts_table({**facts, "routers": "none"}))
    parts: list[RenderableType] = [about, _heads(model, run.labels)]
    if len(versions.every(run.path)) > 1:
        parts.append(versions_table(run.path))
    return Group(*parts)


def _heads(model: TasksModel, labels: dict[str, list[str]]) -> Table:
    table = Table(title="tasks", title_justify="left")
    for column in ("task", "head", "outputs", "reads layers", "labels"):
        table.add_column(column)
    for name in model.tasks:
        config: Any = model.heads[name].config
        known = labels[name] if config.kind in NAMED else []
        said = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        table.add_row(name, str(config.kind), str(config.width), _layers(model.heads[name]), said)
    return table


def _layers(head: Any) -> str:
    """The part that each layer has in what a head reads, the embeddings first."""
    if head.mix is None:
        return "the last"
    return " ".join(f"{share:.2f}" for share in head.mix.shares().tolist())
