"""What tasks on texts share: columns of a table, one text a line, tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from pydantic import Field
from transformers import DataCollatorWithPadding

from turnout.errors import UserError
from turnout.tasks.base import Collator, DataConfig, Task, check_tokenizer, map_batches
from turnout.tasks.table import Table, is_hub_name, read_hub, read_table
from turnout.tasks.text import STDIN, read_lines, source_name


class TextConfig(DataConfig):
    """`text` may be several columns, joined by a space. `columns` names those of a file without a
    header; `quoting: false` takes quote marks in CSV and TSV as plain text."""

    text: str | list[str] = "text"
    text_pair: str | None = None
    label: str = "label"
    columns: list[str] | None = Field(None, min_length=1)
    quoting: bool = True

    @property
    def text_columns(self) -> list[str]:
        """The columns of the first text, always as a list."""
        return [self.text] if isinstance(self.text, str) else self.text


T = TypeVar("T", bound=TextConfig)


class TextTask(Task[T]):
    """A task on a text, or a pair of texts. Final classes say what a label is: they write
    ``_read_labelled`` and ``_label_ids``."""

    def _table(self, source: str, split: str) -> Table:
        """A labelled file: its texts are checked, and the label column is there."""
        config = self.config
        if is_hub_name(source):
            table = read_hub(source, split)
        else:
            table = read_table(source, config.columns, config.quoting)
        self._check_texts(table)
        table.require(config.label)
        return table

    @property
    def shown_columns(self) -> list[str]:
        config = self.config
        return [*config.text_columns, *([config.text_pair] if config.text_pair else [])]

    def _label_ids(self, values: list[Any]) -> list[Any]:
        """What `labels` holds for some values of the label column."""
        raise NotImplementedError

    def read(self, path: str) -> datasets.Dataset:
        """See Task.read. Plain lines can only fill a single text column."""
        config = self.config
        if path == STDIN or Path(path).suffix.lower() == ".txt":
            lines = read_lines(path)
            if len(config.text_columns) > 1 or config.text_pair:
                needed = [*config.text_columns, *([config.text_pair] if config.text_pair else [])]
                raise UserError(
                    f"{source_name(path)} has one text a line, but this task reads the columns "
                    f"{', '.join(map(repr, needed))}; give a .csv, .tsv or .jsonl file"
                )
            return Table(path, {config.text_columns[0]: lines}).dataset()
        table = read_table(path, self._prediction_columns(path), config.quoting)
        self._check_texts(table)
        table.columns.pop(config.label, None)
        return table.dataset()

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """See Task.encode. `labels` only if `dataset` has the label column."""
        config = self.config
        check_tokenizer(tokenizer, config.max_length)
        labelled = config.label in dataset.column_names

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            rows = zip(*(columns[name] for name in config.text_columns), strict=True)
            texts = [" ".join(row) for row in rows]
            pairs = columns[config.text_pair] if config.text_pair else None
            out = dict(tokenizer(texts, pairs, truncation=True, max_length=config.max_length))
            if labelled:
                out["labels"] = self._label_ids(columns[config.label])
            return out

        return map_batches(dataset, batch)

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return Collator(tokenizer, DataCollatorWithPadding(tokenizer))

    def _check_texts(self, table: Table) -> None:
        pair = [self.config.text_pair] if self.config.text_pair else []
        names = [*self.config.text_columns, *pair]
        table.require(*names)
        for name in names:
            for row, value in enumerate(table.columns[name]):
                if not isinstance(value, str):
                    raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")

    def _prediction_columns(self, path: str) -> list[str] | None:
        """Column names of a header-less file to predict: it may lack the label column."""
        names = self.config.columns
        if not names or Path(path).suffix.lower() not in (".csv", ".tsv"):
            return names
        delimiter = "," if Path(path).suffix.lower() == ".csv" else "\t"
        unlabelled = [name for name in names if name != self.config.label]
        first = next((line for line in read_lines(path) if line), "")
        return unlabelled if first.count(delimiter) + 1 == len(unlabelled) else names
