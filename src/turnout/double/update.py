"""`turnout update`: go on learning from new rows of one task, without losing what was known.

The model in use is trained on the new rows and on a sample of the old rows of every task (replay,
Robins 1995, doi 10.1080/09540099550039318); rows of updates before it are old rows too. Test rows
of all tasks and updates, and of the new data, are judged before and after; where an old score falls
by more than the margin, or the new one falls at all, the new version is kept but not put in use.
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
from turnout.double.memory import TEST, TRAIN, Memory, joined, memory, new_rows, write_rows
from turnout.double.pipeline import begin_again, finish, fit_tasks
from turnout.double.prepare import set_dial
from turnout.double.run import TasksRun, open_tasks_run
from turnout.double.versions import UPDATE, VERSIONS, current, every, refusal, use
from turnout.errors import UserError
from turnout.files import atomic_dir, make_folder, write_json
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import Task
from turnout.train.data import Data
from turnout.train.fit import check_one_process
from turnout.train.precision import moved
from turnout.train.saving import save

Say = Callable[[str], None]


@dataclass(frozen=True)
class Update:
    """What an update came to. before, after: scores of the old test rows, by task, and of those of
    each version before it that is built upon; new_before, new_after: of the new ones. fallen: which
    of the old lost more than the margin. left_out: new rows to learn from that stand among rows
    that something is judged by."""

    version: int
    task: str
    rows: int
    left_out: int
    margin: float
    before: dict[str, float]
    after: dict[str, float]
    new_before: float
    new_after: float
    fallen: list[str]

    @property
    def accepted(self) -> bool:
        """Was it put in use."""
        return not self.fallen and self.new_after >= self.new_before


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
    check_one_process()
    opened = open_tasks_run(run)
    tasks = opened.tasks()
    name = _named(tasks, task, opened.path)
    if replay < 0 or margin < 0 or epochs <= 0:
        raise UserError("replay and margin must be at least 0, and epochs above 0")
    known = memory(opened, tasks)
    fresh, fresh_test, left_out = new_rows(tasks[name], data, test, seed, known, name)
    say(f"{name}: {len(fresh):,} new rows to learn from, {len(fresh_test):,} to judge by")
    if left_out:
        say(f"  {left_out:,} more are left out: something is judged by them")
    model, tokenizer = moved(opened.load()), opened.tokenizer()
    mixed = _mixed(tasks, known, name, fresh, replay, seed, tokenizer)

    def judged() -> dict[str, float]:
        return {
            what: _score(model, each, tasks[each], rows, tokenizer)
            for what, (each, rows) in known.tests.items()
        }

    before = judged()
    new_before = _score(model, name, tasks[name], fresh_test, tokenizer)
    version = every(opened.path)[-1] + 1
    checkpoints = opened.path / "checkpoints" / f"update-{version}"
    shutil.rmtree(checkpoints, ignore_errors=True)  # of another update, which was stopped
    config = opened.recipe.train.model_copy(
        update={"epochs": epochs, "max_steps": None, "patience": None, "seed": seed}
    )
    begin_again(model, config)
    frozen = opened.recipe.bridge is None or opened.recipe.bridge.frozen
    fit_tasks(model, mixed, config, checkpoints, say, progress, frozen)
    finish(model, config)
    validations = {
        each: task.encode(known.validations[each], tokenizer) for each, task in tasks.items()
    }
    batch_tokens = opened.recipe.measure.batch_tokens
    set_dial(model, validations, tokenizer, config.budget, batch_tokens)
    after = judged()
    new_after = _score(model, name, tasks[name], fresh_test, tokenizer)
    fallen = [what for what in before if after[what] < before[what] - margin]
    found = Update(
        version, name, len(fresh), left_out, margin, before, after, new_before, new_after, fallen
    )
    _keep(opened, model, tokenizer, found, fresh, fresh_test)
    shutil.rmtree(opened.path / "checkpoints", ignore_errors=True)
    _tell(found, say)
    if found.accepted:
        use(opened.path, version)
    return found


def _score(
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


def _mixed(
    tasks: Mapping[str, Task[Any]],
    known: Memory,
    name: str,
    fresh: datasets.Dataset,
    replay: float,
    seed: int,
    tokenizer: Any,
) -> dict[str, Data]:
    """Training rows of every task: old ones drawn by the seed, and the new ones. Without replay the
    other tasks have none."""
    generator = np.random.default_rng(seed + 1)
    found = {}
    for each, task in tasks.items():
        old = known.trains[each]
        count = min(len(old), round(replay * len(fresh)))
        parts = [old.select(np.sort(generator.permutation(len(old))[:count]))] if count else []
        if each == name:
            parts = [fresh, *parts]
        if not parts:
            continue
        validation = known.validations[each]
        found[each] = Data(
            task,
            tokenizer,
            task.encode(joined(parts), tokenizer),
            task.encode(validation, tokenizer),
            task.references(validation),
        )
    return found


def _keep(
    opened: TasksRun,
    model: TasksModel,
    tokenizer: Any,
    found: Update,
    fresh: datasets.Dataset,
    fresh_test: datasets.Dataset,
) -> None:
    """Write a version and the rows that it learned from, whole or not at all."""
    place = make_folder(opened.path / VERSIONS) / str(found.version)
    with atomic_dir(place) as temp:
        save(model, tokenizer, temp / "model")
        write_rows(temp / TRAIN, fresh)
        write_rows(temp / TEST, fresh_test)
        facts = {**asdict(found), "accepted": found.accepted, "from": current(opened.path)}
        write_json(temp / UPDATE, facts)


def _tell(found: Update, say: Say) -> None:
    for what, before in found.before.items():
        say(f"  {what}, old test rows: {before:.4f} -> {found.after[what]:.4f}")
    say(f"  {found.task}, new test rows: {found.new_before:.4f} -> {found.new_after:.4f}")
    if found.accepted:
        say(f"version {found.version} is in use")
        return
    reason = refusal(found.fallen, found.margin)
    say(f"refused: {reason}. The version in use stays; this one is kept as version {found.version}")
