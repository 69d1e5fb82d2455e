"""Train several tasks on one backbone: what `turnout train` does with a recipe of ``tasks``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from turnout.double.bare import bare
from turnout.double.config import APART, PROMPTS, TasksTrainConfig
from turnout.double.data import TasksData
from turnout.double.frozen import is_fixed, states_of
from turnout.double.prepare import check_routers, prepare_tasks, set_dial
from turnout.double.recipe import TasksRecipe
from turnout.double.run import TasksRun, is_tasks_run, open_tasks_run, start_tasks_run
from turnout.double.strategies import Unfreezing, begin, end, hold
from turnout.double.trainer import EndUnjudged, TasksTrainer
from turnout.errors import UserError
from turnout.files import write_json
from turnout.hosts.additions import add_bridge, add_cases
from turnout.hosts.tasks_model import TasksModel
from turnout.install import install
from turnout.objectives import ObjectivesConfig
from turnout.tasks import TASKS, NERConfig, WordsTask
from turnout.tasks.base import Task
from turnout.tasks.casing import CASES, cased
from turnout.train.checkpoints import last_checkpoint
from turnout.train.data import Data, encode
from turnout.train.fit import check_one_process, fit, set_dropout
from turnout.train.host import open_backbone, open_language_model
from turnout.train.precision import moved
from turnout.train.saving import save
from turnout.units.task_heads import NAMED

Say = Callable[[str], None]


def train_tasks(
    recipe: TasksRecipe, out: str | Path, *, say: Say = print, progress: bool = True
) -> TasksRun:
    """Train what a recipe of several tasks describes into a run folder, or go on there.

    The same recipe, data and machine give the same weights, stopped or not. Raises UserError before
    any training for what is wrong with recipe, data, host or routers.
    """
    run = open_tasks_run(out) if is_tasks_run(out) else None
    if run is not None and run.model.is_dir():
        say(f"{run.path} is trained already; nothing to do")
        return start_tasks_run(out, recipe, run.labels)
    check_one_process()
    check_routers(recipe)
    tasks, raw = load_tasks(recipe, say)
    model, tokenizer = new_model(recipe, tasks)
    data = {name: encode(task, raw[name], tokenizer) for name, task in tasks.items()}
    labels = {name: task.labels for name, task in tasks.items()}
    run = start_tasks_run(out, recipe, labels)
    start, whole = time.perf_counter(), last_checkpoint(run.checkpoints) is None
    moved(model)
    prepare_tasks(model, TasksData.of(data, recipe.train, model.tasks), say)
    frozen = recipe.bridge is None or recipe.bridge.frozen
    mixed = fit_tasks(model, data, recipe.train, run.checkpoints, say, progress, frozen)
    # stopped on the way, nobody knows what it took
    spent = round(time.perf_counter() - start, 1) if whole else None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    finish(model, recipe.train)
    validations = {name: each.validation for name, each in data.items()}
    budget, batch_tokens = recipe.train.budget, recipe.measure.batch_tokens
    set_dial(model, validations, tokenizer, budget, batch_tokens)
    scores = mixed.scores(model)
    for name, score in scores.items():
        say(f"  {name}: {tasks[name].headline} on validation {score:.4f}")
    cost = {"seconds": spent, "trained_parameters": trained, "validation": scores}
    write_json(run.path / "training.json", cost)
    save(model, tokenizer, run.model)  # last: a run that has a model is whole
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return run


def load_tasks(
    recipe: TasksRecipe, say: Say
) -> tuple[dict[str, Task[Any]], dict[str, dict[str, Any]]]:
    """The tasks of a recipe and their rows. Raises UserError that names the task."""
    tasks: dict[str, Task[Any]] = {}
    raw: dict[str, dict[str, Any]] = {}
    for name, config in recipe.tasks.items():
        task = TASKS[config.kind](config)
        try:
            raw[name] = task.load()
        except UserError as error:
            raise UserError(f"task {name!r}: {error}") from error
        sizes = ", ".join(f"{len(split):,} {key}" for key, split in raw[name].items())
        named = task.head.kind in NAMED if not task.generates else False
        say(f"{name}: {sizes}" + (f"; {len(task.labels)} labels" if named else ""))
        tasks[name] = task
    return tasks, raw


def new_model(recipe: TasksRecipe, tasks: Mapping[str, Task[Any]]) -> tuple[TasksModel, Any]:
    """Backbone, heads and routers, as training begins with them."""
    model, tokenizer = open_backbone(
        recipe.model,
        {name: task.head for name, task in tasks.items()},
        max(task.config.max_length for task in tasks.values())
        + (recipe.train.prompt_tokens if recipe.train.strategy in PROMPTS else 0),
        words=any(isinstance(task.config, NERConfig) for task in tasks.values()),
        seed=recipe.train.seed,
        mixed=recipe.layers == "mixed",
    )
    check_guesses(model, tasks)
    set_seed(recipe.train.seed)  # of the first weights of all that is new
    if recipe.casing:
        tokenizer = cased(tokenizer)
        add_cases(model, len(CASES))
    begin(model, recipe.train)
    if recipe.bridge is not None:
        add_bridge(model, open_language_model(recipe.bridge.model), recipe.bridge.layers)
    if recipe.routers:
        install(model, recipe.routers)
    return model, tokenizer


def check_guesses(model: TasksModel, tasks: Mapping[str, Task[Any]]) -> None:
    """Raise UserError where a token would see the next one, which it is to guess."""
    for name, task in tasks.items():
        if isinstance(task, WordsTask) and task.config.guess == "next" and not model.looks_back():
            raise UserError(
                f"task {name!r}: guess: next is for backbones whose tokens look back only; "
                f"{type(model.backbone).__name__} looks to both sides: use guess: masked"
            )


def begin_again(model: TasksModel, config: TasksTrainConfig) -> None:
    """Add anew what a strategy trains and took off in the end, under routers that are there."""
    if config.strategy in APART:
        with bare(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            begin(model, config)


def finish(model: TasksModel, config: TasksTrainConfig) -> None:
    """Merge or drop what only the training needed."""
    if config.strategy in APART:
        with bare(model):
            end(model, config)


def fit_tasks(
    model: TasksModel,
    data: Mapping[str, Data],
    config: TasksTrainConfig,
    checkpoints: Path,
    say: Say = print,
    progress: bool = True,
    bridge_frozen: bool = True,
    learns: Callable[[TasksModel], None] | None = None,
) -> TasksData:
    """Train a model of tasks in place on encoded data. bridge_frozen: see ``hold``. learns: freezes
    the rest; None = as the strategy says."""
    mixed = TasksData.of(data, config, model.tasks)
    # an item is a batch: see double/mixing.py
    plain = config.plain().model_copy(update={"batch_size": 1})
    callbacks: list[Any] = [EndUnjudged()]
    held: Any = learns or (lambda host: hold(host, config, bridge_frozen))
    held(model)
    set_dropout(model, config.dropout, None)
    if is_fixed(model):
        moved(model)
        states = states_of(model, data)
        mixed = replace(mixed, states=states)
        if states:
            say(f"  frozen backbone: {sum(map(len, states.values())):,} rows are read once")
    if learns is None and config.strategy == "discriminative" and config.unfreeze > 0:
        callbacks.append(Unfreezing(model, config.unfreeze))
    trainer: Any = fit(
        model,
        mixed,  # type: ignore[arg-type]
        plain,
        ObjectivesConfig(),
        checkpoints,
        title="tasks",
        progress=progress,
        say=say,
        callbacks=callbacks,
        trainer_class=TasksTrainer,
        held=held,
        tasks_config=config,
    )
    trainer.watch(None)
    return mixed
