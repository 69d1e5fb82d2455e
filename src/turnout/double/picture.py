"""Who uses which routing layer, as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from turnout.double.results import TasksResults
from turnout.errors import UserError
from turnout.files import write_text

DARK = 0.6  # weight from which a number is written in white


def use_of_experts(results: TasksResults, path: str | Path) -> Path:
    """Write an SVG of the mean weight of each routing layer (column) for each task (row). Raises
    UserError where a task used none."""
    if not results.tasks or any(not task.use for task in results.tasks):
        raise UserError("there is no use to draw: this model has no routing layers")
    use_TU = np.array([task.use for task in results.tasks])
    tasks, units = use_TU.shape
    figure = Figure(figsize=(1.8 + 0.7 * units, 0.9 + 0.45 * tasks), layout="constrained")
    axes = figure.add_subplot()
    top = max(1.0, float(use_TU.max()))
    axes.imshow(use_TU, cmap="Blues", vmin=0.0, vmax=top, aspect="auto")
    axes.set_xticks(range(units), [str(unit + 1) for unit in range(units)])
    axes.set_yticks(range(tasks), [task.name for task in results.tasks])
    axes.set_xlabel("routing layer")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row, column in np.ndindex(use_TU.shape):
        value = float(use_TU[row, column])
        color = "white" if value > DARK * top else "#23272b"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())
    return Path(path)
