"""Tables from CSV, TSV, JSON lines, Parquet, or the Hub, each row with the place it came from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from turnout.errors import UserError
from turnout.files import nearest, require_file
from turnout.tasks.text import read_lines, source_name

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass
class Table:
    """Columns of equal length. `lines[i]` is where row i begins: a line of a text file (from 1), or
    None for sources without lines, whose rows are then counted (from 1)."""

    source: str
    columns: dict[str, list[Any]]
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def at(self, row: int) -> str:
        """The place of row `row` for a message: "file:line", or "name, row n"."""
        return (
            f"{self.source}, row {row + 1}"
            if self.lines is None
            else f"{self.source}:{self.lines[row]}"
        )

    def require(self, *names: str) -> None:
        """Raise UserError unless every column is there; the message lists those that are."""
        for name in names:
            if name not in self.columns:
                have = ", ".join(repr(column) for column in self.columns)
                raise UserError(
                    f"{self.source}: no column {name!r}; its columns are {have} "
                    "(name the right one in the task, or give `columns` if the file has no header)"
                )

    def dataset(self) -> datasets.Dataset:
        """The columns in memory. Raises UserError when one mixes types (possible in JSON lines)."""
        arrays = {}
        for name, values in self.columns.items():
            try:
                arrays[name] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise UserError(f"{self.source}: column {name!r} mixes types: {error}") from error
        return datasets.Dataset(pa.table(arrays))


def read_table(path: str, columns: Sequence[str] | None = None, quoting: bool = True) -> Table:
    """Read a file by its suffix. `columns` names those of a CSV or TSV without a header line;
    `quoting=False` takes quote marks in CSV and TSV as plain text.

    Raises UserError: no such file, unknown suffix, no rows, a row of another width, bad JSON.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {suffix!r}; known are {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix == ".jsonl":
        table = _json_lines(path)
    else:
        table = _delimited(path, "," if suffix == ".csv" else "\t", columns, quoting)
    if not len(table):
        raise UserError(f"{path} has no rows")
    return table


def read_hub(name: str, split: str) -> Table:
    """Split `split` of a data set on the Hub: "name" or "name:config". ClassLabels become names.

    Raises UserError when the name is neither a file nor a data set that can be loaded.
    """
    repo, _, config = name.partition(":")
    try:
        with no_progress():
            data = datasets.load_dataset(repo, config or None, split=split)
    except Exception as error:  # the Hub client raises many types; each means: not available
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name!r} is neither a file nor a data set with a split {split!r} that could be "
            f"loaded ({reason}){nearest(name)}"
        ) from error
    columns = {key: _named(data.features[key], data[key][:]) for key in data.column_names}
    return Table(f"{name} ({split})", columns)


def is_hub_name(value: str) -> bool:
    """Whether `value` can only be a name on the Hub: no such file, and not written like a path."""
    path = Path(value)
    # a dot may occur in a Hub name too, but "set.v2" in a folder that exists is a mistyped file
    dotted = path.suffix in SUFFIXES or (bool(path.suffix) and path.parent.is_dir())
    pathlike = value.startswith((".", "/", "~")) or value.count("/") > 1 or dotted
    return not path.exists() and not pathlike


@contextmanager
def no_progress() -> Iterator[None]:
    """Without the progress bars of `datasets`, which are on or off for all of the process."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _named(feature: Any, values: list[Any]) -> list[Any]:
    if isinstance(feature, datasets.ClassLabel):
        return [None if value in (None, -1) else feature.names[value] for value in values]
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return [[inner.names[value] for value in row] for row in values]
    return values


def _delimited(path: str, delimiter: str, names: Sequence[str] | None, quoting: bool) -> Table:
    rows = _split_rows(path, delimiter, quoting)
    header = list(names) if names else next(rows)[1]
    if len(set(header)) < len(header):
        raise UserError(f"{path}: a column name occurs twice: {', '.join(map(repr, header))}")
    columns: list[list[str]] = [[] for _ in header]
    lines = []
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}:{line}: found {len(row)} columns, expected {len(header)} "
                f"({', '.join(map(repr, header))})"
            )
        lines.append(line)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return Table(path, dict(zip(header, columns, strict=True)), lines)


def _split_rows(path: str, delimiter: str, quoting: bool) -> Iterator[tuple[int, list[str]]]:
    """(line the row begins at, its fields); lines with nothing on them are passed over."""
    lines = read_lines(path)
    if not quoting:
        yield from ((n, line.split(delimiter)) for n, line in enumerate(lines, 1) if line)
        return
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{begin}: {error} in the row that begins here "
            "(if quote marks are plain text in this file, set `quoting: false`)"
        ) from error


def _json_lines(path: str) -> Table:
    rows: list[dict[str, Any]] = []
    lines = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{source_name(path)}:{number}:{error.colno}"
            raise UserError(f"{where}: not valid JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: found a JSON {type(row).__name__}, expected an object"
            )
        rows.append(row)
        lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, lines)


def _parquet(path: str) -> Table:
    try:
        return Table(path, pq.read_table(require_file(path)).to_pydict())
    except (pa.ArrowInvalid, OSError) as error:
        reason = "is empty" if not Path(path).stat().st_size else f"is not a Parquet file: {error}"
        raise UserError(f"{path} {reason}") from error
