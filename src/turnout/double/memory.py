"""What a run has learned from and is judged by: its recipe's rows, and those of its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from turnout.double.run import TasksRun
from turnout.double.versions import VERSIONS, current, facts
from turnout.errors import UserError
from turnout.tasks.base import Task

TRAIN, TEST = "train.parquet", "test.parquet"  # beside a version's model


@dataclass(frozen=True)
class Memory:
    """trains, validations: rows by task. tests: by what is judged, the task and its rows: the
    recipe's test rows (without any, its validation rows) under the task's name, and those of each
    update that the version in use is built upon."""

    trains: dict[str, datasets.Dataset]
    validations: dict[str, datasets.Dataset]
    tests: dict[str, tuple[str, datasets.Dataset]]


def memory(run: TasksRun, tasks: Mapping[str, Task[Any]]) -> Memory:
    """Read it all. Raises UserError for files that are no longer there or no longer fit."""
    splits = {name: task.load() for name, task in tasks.items()}
    trains = {name: split["train"] for name, split in splits.items()}
    tests = {name: (name, split.get("test", split["validation"])) for name, split in splits.items()}
    for version in _built_upon(run.path):
        name, folder = facts(run.path, version)["task"], run.path / VERSIONS / str(version)
        trains[name] = joined([trains[name], _read(folder / TRAIN)])
        tests[f"{name}, version {version}"] = (name, _read(folder / TEST))
    return Memory(trains, {name: split["validation"] for name, split in splits.items()}, tests)


def _built_upon(run: Path) -> list[int]:
    """The updates that the version in use comes from, itself included, oldest first."""
    found, version = list[int](), current(run)
    while version:
        found.append(version)
        version = int(facts(run, version)["from"])
    return found[::-1]


def new_rows(
    task: Task[Any], data: str, test: str | None, seed: int, known: Memory, name: str
) -> tuple[datasets.Dataset, datasets.Dataset, int]:
    """New rows to learn from, new rows to judge by, and how many of the former were left out
    because something is judged by them. Those to judge by were never learned from. Raises UserError
    where nothing is left."""
    rows = task._read_labelled(data, "train")
    learned, judging = set(task.shown(known.trains[name])), set[Any]()
    for each, kept in [*known.tests.values(), (name, known.validations[name])]:
        if each == name:
            judging |= set(task.shown(kept))
    if test is not None:
        fresh_test = _without(task, task._read_labelled(test, "test"), learned)
    else:
        fresh_keys = [k for k in dict.fromkeys(task.shown(rows)) if k not in learned | judging]
        held = max(1, len(fresh_keys) // 5)
        if held >= len(fresh_keys):
            raise UserError(
                f"{data}: {len(fresh_keys)} of its {len(rows)} row(s) are new and differ, too few "
                "to set any apart; name a --test"
            )
        drawn = np.random.default_rng(seed).permutation(len(fresh_keys))[:held]
        apart = {fresh_keys[place] for place in drawn}
        fresh_test = _without(task, rows, set(task.shown(rows)) - apart)
    if not len(fresh_test):
        raise UserError(f"{test}: the model has learned from every row of it")
    fresh = _without(task, rows, judging | set(task.shown(fresh_test)))
    set_apart = 0 if test is not None else len(fresh_test)
    if not len(fresh):
        raise UserError(f"{data}: something is judged by every row of it; nothing is left to learn")
    return fresh, fresh_test, max(0, len(rows) - len(fresh) - set_apart)


def _without(task: Task[Any], rows: datasets.Dataset, keys: set[Any]) -> datasets.Dataset:
    """The rows that show none of the keys."""
    return rows.select([n for n, key in enumerate(task.shown(rows)) if key not in keys])


def joined(parts: Sequence[datasets.Dataset]) -> datasets.Dataset:
    """Rows of several files, with the columns that all of them have. Raises UserError where a
    column holds something else."""
    tables = [_table(part) for part in parts]
    names = [n for n in tables[0].column_names if all(n in t.column_names for t in tables)]
    wanted = tables[0].select(names).schema
    try:
        return datasets.Dataset(pa.concat_tables([t.select(names).cast(wanted) for t in tables]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"new rows do not fit the old ones: {error}") from None


def write_rows(path: Path, rows: datasets.Dataset) -> None:
    """Rows as a file."""
    pq.write_table(_table(rows), path)


def _table(rows: datasets.Dataset) -> pa.Table:
    table: Any = rows.with_format("arrow")[:]
    return table.replace_schema_metadata(None)


def _read(path: Path) -> datasets.Dataset:
    if not path.is_file():
        raise UserError(f"{path} is gone: the rows that this version learned from are needed")
    return datasets.Dataset(pq.read_table(path))
