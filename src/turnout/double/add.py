"""`turnout add`: one task more for a trained run; its other tasks answer as before, bit for bit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from turnout.double.bare import bare
from turnout.double.config import PROMPTS
from turnout.double.data import asking
from turnout.double.pipeline import check_guesses, fit_tasks
from turnout.double.recipe import Name
from turnout.double.run import TasksRun, open_tasks_run, start_tasks_run
from turnout.double.versions import current, every
from turnout.errors import UserError
from turnout.files import write_json
from turnout.hosts.tasks_model import TasksModel, add_head, check_name, reading_all
from turnout.recipe import checked
from turnout.recipe_yaml import read_page
from turnout.tasks import TASKS, NERConfig, NERTask, TaskConfig
from turnout.tasks.base import Task
from turnout.train.data import encode
from turnout.train.fit import check_one_process
from turnout.train.host import byte_level, check_length, runs_together
from turnout.train.saving import save

Say = Callable[[str], None]


def add_task(
    run: str | Path,
    name: str,
    config: Any,
    out: str | Path,
    *,
    epochs: float | None = None,
    say: Say = print,
    progress: bool = True,
) -> TasksRun:
    """Train the head of a new task on a frozen copy of a run's model, into a run folder of its own.

    config: of the task, as in a recipe. epochs: None = the recipe's. Beside the head only what the
    routers know of this task by itself is trained: its embedding and its logits. Raises UserError
    for a name that is taken, for routers with private units (a new task's would have to be another
    task's before), for a run with updates in use (add to a run of its own), and as training does.
    """
    opened = open_tasks_run(run)
    if name in opened.recipe.tasks:
        raise UserError(f"{run} has a task {name!r} already")
    if current(opened.path) or len(every(opened.path)) > 1:
        raise UserError(f"{run} was updated: train a run of the version that is wanted first")
    for router in opened.recipe.routers:
        if getattr(router, "private", 0):
            raise UserError("routers with private units cannot take another task later")
    check_name(name)
    if epochs is not None and epochs <= 0:
        raise UserError(f"epochs must be above 0, got {epochs:g}")
    check_one_process()
    task = TASKS[config.kind](config)
    raw = task.load()
    model, tokenizer = opened.load(), opened.tokenizer()
    _check_fits(opened, model, name, task)
    reads_all = opened.recipe.layers == "mixed"
    head = reading_all(model.backbone, task.head) if reads_all else task.head
    grow(model, name, head, opened.recipe.train.seed)
    data = {name: encode(task, raw, tokenizer)}
    train = opened.recipe.train.model_copy(
        update={"epochs": epochs or opened.recipe.train.epochs, "max_steps": None}
    )
    recipe = opened.recipe.model_copy(update={"tasks": {**opened.recipe.tasks, name: config}})
    made = start_tasks_run(out, recipe, {**opened.labels, name: task.labels})
    if made.model.is_dir():
        say(f"{made.path} is trained already; nothing to do")
        return made
    start = time.perf_counter()
    with asking(model, name):
        mixed = fit_tasks(
            model, data, train, made.checkpoints, say, progress, learns=lambda m: hold_but(m, name)
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = {"seconds": round(time.perf_counter() - start, 1), "trained_parameters": trained}
    scores = mixed.scores(model)
    say(f"  {name}: {task.headline} on validation {scores[name]:.4f}")
    write_json(made.path / "training.json", {"added": name, **cost, "validation": scores})
    save(model, tokenizer, made.model)  # last: a run that has a model is whole
    shutil.rmtree(made.checkpoints, ignore_errors=True)
    return made


def _check_fits(opened: TasksRun, model: TasksModel, name: str, task: Task[Any]) -> None:
    """Raise UserError where the backbone cannot read what the task gives it."""
    train = opened.recipe.train
    prompt = train.prompt_tokens if train.strategy in PROMPTS else 0
    check_length(model.config, task.config.max_length + prompt)
    check_guesses(model, {name: task})
    words = [isinstance(each, NERConfig) for each in opened.recipe.tasks.values()]
    tokenizer = opened.tokenizer()
    apart = not (byte_level(tokenizer) or runs_together(tokenizer))
    if isinstance(task, NERTask) and not any(words) and not apart:
        raise UserError(
            f"task {name!r} labels words, and this run's tokenizer was opened for whole texts: "
            "train it beside the others from the start"
        )


class TaskPage(BaseModel):
    """One task, as it stands in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: Annotated[dict[Name, TaskConfig], Field(min_length=1, max_length=1)]


def task_page(path: str | Path) -> tuple[str, Any]:
    """Name and config of the task on a page. Raises UserError as a recipe's loader does."""
    page = read_page(Path(path))
    tasks = page.data.get("tasks")
    places = [("tasks", name) for name in tasks] if isinstance(tasks, dict) else []
    ((name, config),) = checked(page, TaskPage, places, models=()).tasks.items()
    return name, config


def grow(model: TasksModel, name: str, head: Any, seed: int = 0) -> None:
    """A head more, and a row more in all that routers know of tasks; other rows stay."""
    with bare(model, seed):
        add_head(model, name, head, seed)


def hold_but(model: TasksModel, name: str) -> None:
    """Freeze all but the head of one task and what routers know of tasks."""
    model.requires_grad_(False)
    head: Any = model.heads[name]
    head.requires_grad_(True)
    head.log_variance.requires_grad_(False)
    routing: Any = getattr(model, "turnout", None)
    for key, parameter in routing.named_parameters() if routing is not None else ():
        parameter.requires_grad_(key.rpartition(".")[2] in ("task", "task_logit"))
