"""`turnout update`: go on learning from new rows of one task, without losing what was known.

The model in use is trained on the new rows and on a sample of the old rows of every task (replay,
Robins 1995, doi 10.1080/09540099550039318). Test rows of all tasks, and test rows of the new data,
are judged before and after; where an old task falls by more than the margin, the new version is
kept but not put in use.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from turnout.double.answers import score
from turnout.double.pipeline import fit_tasks
from turnout.double.run import TasksRun, open_tasks_run
from turnout.double.versions import UPDATE, VERSIONS, current, every, use
from turnout.errors import UserError
from turnout.files import atomic_dir, make_folder, write_json
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import Task
from turnout.train.data import Data
from turnout.train.precision import moved
from turnout.train.saving import save

Say = Callable[[str], None]


@dataclass(frozen=True)
class Update:
    """What an update came to. before, after: scores of the old test rows by task; new_before,
    new_after: of the new ones. fallen: tasks that lost more than the margin."""

    version: int
    task: str
    rows: int
    margin: float
    before: dict[str, float]
    after: dict[str, float]
    new_before: float
    new_after: float
    fallen: list[str]

    @property
    def accepted(self) -> bool:
        """Was it put in use."""
        return not self.fallen


def update(
    run: str | Path,
    data: str,
    *,
    task: str | None = None,
    test: str | None = None,
    epochs: float = 1.0,
    replay: float = 1.0,
    margin: float = 0.01,
    seed: int = 0,
    say: Say = print,
    progress: bool = True,
) -> Update:
    """Train the model in use on new rows; put the result in use unless an old task falls.

    data: a file of labelled rows, in the form of the task's training file. task: which one they
    are of; None = the only one. test: labelled rows of the new kind; None = a fifth of ``data`` is
    set apart. replay: old rows of each task to a new one. margin: how much a task's headline may
    fall on its old test rows. Raises UserError: not a run of tasks, an unknown task, labels that
    its head does not have, and whatever is wrong with the files; nothing is changed then.
    """
    opened = open_tasks_run(run)
    tasks = opened.tasks()
    name = _named(tasks, task, opened.path)
    if replay < 0 or margin < 0 or epochs <= 0:
        raise UserError("replay and margin must be at least 0, and epochs above 0")
    fresh, fresh_test = _new_rows(tasks[name], data, test, seed)
    say(f"{name}: {len(fresh):,} new rows to learn from, {len(fresh_test):,} to judge by")
    splits = {each: t.load() for each, t in tasks.items()}
    olds = {each: split.get("test", split["validation"]) for each, split in splits.items()}
    model, tokenizer = moved(opened.load()), opened.tokenizer()
    before = {each: _judged(model, each, tasks[each], olds[each], tokenizer) for each in tasks}
    new_before = _judged(model, name, tasks[name], fresh_test, tokenizer)
    version = every(opened.path)[-1] + 1
    checkpoints = opened.path / "checkpoints" / f"update-{version}"
    shutil.rmtree(checkpoints, ignore_errors=True)  # of another update, which was stopped
    mixed = _mixed(tasks, splits, name, fresh, replay, seed, tokenizer)
    config = opened.recipe.train.model_copy(
        update={"epochs": epochs, "max_steps": None, "patience": None, "seed": seed}
    )
    fit_tasks(model, mixed, config, checkpoints, say, progress)
    after = {each: _judged(model, each, tasks[each], olds[each], tokenizer) for each in tasks}
    new_after = _judged(model, name, tasks[name], fresh_test, tokenizer)
    fallen = [each for each in tasks if after[each] < before[each] - margin]
    found = Update(version, name, len(fresh), margin, before, after, new_before, new_after, fallen)
    _keep(opened, model, tokenizer, found)
    shutil.rmtree(opened.path / "checkpoints", ignore_errors=True)
    _tell(found, tasks, say)
    if found.accepted:
        use(opened.path, version)
    return found


def _judged(
    model: TasksModel, name: str, task: Task[Any], rows: datasets.Dataset, tokenizer: Any
) -> float:
    """A task's headline on labelled rows."""
    return score(model, name, task, task.encode(rows, tokenizer), task.references(rows), tokenizer)


def _named(tasks: Mapping[str, Task[Any]], task: str | None, run: Path) -> str:
    if task is None and len(tasks) == 1:
        return next(iter(tasks))
    if task is None or task not in tasks:
        raise UserError(
            f"{run} has the tasks {', '.join(tasks)}: say which the new rows are of"
            + ("" if task is None else f" ({task!r} is none of them)")
        )
    return task


def _new_rows(
    task: Task[Any], data: str, test: str | None, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """New rows to learn from and to judge by."""
    rows = task._read_labelled(data, "train")
    if test is not None:
        return rows, task._read_labelled(test, "test")
    order = np.random.default_rng(seed).permutation(len(rows))
    held = max(1, len(rows) // 5)
    if held >= len(rows):
        raise UserError(f"{data} has {len(rows)} row(s): too few to set any apart; name a --test")
    return rows.select(np.sort(order[held:])), rows.select(np.sort(order[:held]))


def _mixed(
    tasks: Mapping[str, Task[Any]],
    splits: Mapping[str, Mapping[str, datasets.Dataset]],
    name: str,
    fresh: datasets.Dataset,
    replay: float,
    seed: int,
    tokenizer: Any,
) -> dict[str, Data]:
    """Training rows of every task: old ones drawn by the seed, and the new ones."""
    generator = np.random.default_rng(seed + 1)
    found = {}
    for each, task in tasks.items():
        old = splits[each]["train"]
        count = min(len(old), max(1, round(replay * len(fresh))))
        parts = [old.select(np.sort(generator.permutation(len(old))[:count]))]
        if each == name:
            parts = [fresh, *(parts if replay else [])]
        names = parts[0].column_names
        train = datasets.concatenate_datasets([part.select_columns(names) for part in parts])
        validation = splits[each]["validation"]
        found[each] = Data(
            task,
            tokenizer,
            task.encode(train, tokenizer),
            task.encode(validation, tokenizer),
            task.references(validation),
        )
    return found


def _keep(opened: TasksRun, model: TasksModel, tokenizer: Any, found: Update) -> None:
    """Write a version, whole or not at all."""
    place = make_folder(opened.path / VERSIONS) / str(found.version)
    with atomic_dir(place) as temp:
        save(model, tokenizer, temp / "model")
        facts = {**asdict(found), "accepted": found.accepted, "from": current(opened.path)}
        write_json(temp / UPDATE, facts)


def _tell(found: Update, tasks: Mapping[str, Task[Any]], say: Say) -> None:
    for name, task in tasks.items():
        before, after = found.before[name], found.after[name]
        say(f"  {name}, old test rows: {task.headline} {before:.4f} -> {after:.4f}")
    say(f"  {found.task}, new test rows: {found.new_before:.4f} -> {found.new_after:.4f}")
    if found.fallen:
        say(
            f"refused: {', '.join(found.fallen)} fell by more than {found.margin:g} on old test "
            f"rows. The version in use stays; this one is kept as version {found.version}"
        )
    else:
        say(f"version {found.version} is in use")
