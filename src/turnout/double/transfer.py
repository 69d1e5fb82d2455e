"""What tasks give each other: each trained alone, and with each other one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from turnout.double.pipeline import train_tasks
from turnout.double.run import TasksRun
from turnout.errors import UserError
from turnout.files import read_json


def transfer(
    run: TasksRun, *, say: Callable[[str], None] = print, progress: bool = True
) -> dict[str, dict[str, float]]:
    """By task a and b: the validation score of a trained with b, less that of a trained alone, by
    the run's recipe. Leaves a run folder for each in ``transfer/``; started again, it goes on.

    k tasks take k (k + 1) / 2 trainings. Raises UserError for a run of one task.
    """
    names = list(run.recipe.tasks)
    if len(names) < 2:
        raise UserError("transfer between tasks needs at least two of them")

    def scores(*some: str) -> dict[str, float]:
        recipe = run.recipe.model_copy(
            update={
                "tasks": {name: run.recipe.tasks[name] for name in some},
                "train": run.recipe.train.model_copy(
                    update={
                        "weights": {k: v for k, v in run.recipe.train.weights.items() if k in some}
                    }
                ),
            }
        )
        say(f"transfer: {' with '.join(some)}")
        made = train_tasks(
            recipe, run.path / "transfer" / "+".join(some), say=_silent, progress=progress
        )
        return read_json(made.path / "training.json")["validation"]

    alone = {name: scores(name)[name] for name in names}
    matrix: dict[str, dict[str, float]] = {name: {} for name in names}
    for one, other in combinations(names, 2):
        both = scores(one, other)
        matrix[one][other] = both[one] - alone[one]
        matrix[other][one] = both[other] - alone[other]
    return matrix


def _silent(text: str) -> None:
    """What each training says would drown what is measured."""
