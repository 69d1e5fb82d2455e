"""One label a text (or a pair of texts); the headline is accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from pydantic import Field
from sklearn.metrics import classification_report
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from turnout.errors import UserError
from turnout.tasks.base import (
    Collator,
    DataConfig,
    Task,
    as_array,
    check_tokenizer,
    map_batches,
    plain,
)
from turnout.tasks.table import Table, is_hub_name, read_hub, read_table
from turnout.tasks.text import STDIN, read_lines, source_name


class ClassificationConfig(DataConfig):
    """`text` may be several columns, joined by a space. `columns` names those of a file without a
    header; `quoting: false` takes quote marks in CSV and TSV as plain text."""

    kind: Literal["classification"] = "classification"
    text: str | list[str] = "text"
    text_pair: str | None = None
    label: str = "label"
    columns: list[str] | None = Field(None, min_length=1)
    quoting: bool = True

    @property
    def text_columns(self) -> list[str]:
        """The columns of the first text, always as a list."""
        return [self.text] if isinstance(self.text, str) else self.text


class ClassificationTask(Task[ClassificationConfig]):
    headline = "accuracy"
    model_class = AutoModelForSequenceClassification

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        config = self.config
        if is_hub_name(source):
            table = read_hub(source, split)
        else:
            table = read_table(source, config.columns, config.quoting)
        self._check_texts(table)
        table.require(config.label)
        names = [
            _label_name(table, row, value) for row, value in enumerate(table.columns[config.label])
        ]
        table.columns[config.label] = names
        if not self.labels:
            self.labels = _sorted_labels(set(names))
            if len(self.labels) < 2:
                raise UserError(
                    f"{source}: every row has the label {names[0]!r}; at least two are needed"
                )
        known = set(self.labels)
        for row, name in enumerate(names):
            if name not in known:
                raise UserError(
                    f"{table.at(row)}: label {name!r} does not occur in training; "
                    f"known labels: {', '.join(map(repr, self.labels))}"
                )
        return table.dataset()

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
        """See Task.encode. `labels` (an id a row) only if `dataset` has the label column."""
        config = self.config
        check_tokenizer(tokenizer, config.max_length)
        ids = {name: index for index, name in enumerate(self.labels)}
        labelled = config.label in dataset.column_names

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            rows = zip(*(columns[name] for name in config.text_columns), strict=True)
            texts = [" ".join(row) for row in rows]
            pairs = columns[config.text_pair] if config.text_pair else None
            out = dict(tokenizer(texts, pairs, truncation=True, max_length=config.max_length))
            if labelled:
                out["labels"] = [ids[name] for name in columns[config.label]]
            return out

        return map_batches(dataset, batch)

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return Collator(tokenizer, DataCollatorWithPadding(tokenizer))

    def references(self, dataset: datasets.Dataset) -> np.ndarray:
        """(examples,) gold ids."""
        ids = {name: index for index, name in enumerate(self.labels)}
        return np.array([ids[name] for name in dataset[self.config.label]])

    def predictions(self, logits: Any, labels: Any = None) -> np.ndarray:
        """(B,) ids from logits (B, classes); `labels` is not needed."""
        return as_array(logits).argmax(-1)

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 2): correct, 1."""
        correct = np.asarray(predictions) == np.asarray(references)
        return np.stack([correct, np.ones_like(correct)], axis=1).astype(np.int64)

    def score(self, total: np.ndarray) -> float:
        """Accuracy."""
        return float(total[0] / total[1])

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """accuracy, macro_f1, and `classes`: precision, recall, f1-score and support a label."""
        full: Any = classification_report(
            references,
            predictions,
            labels=range(len(self.labels)),
            target_names=self.labels,
            output_dict=True,
            zero_division=0,  # pyright: ignore[reportArgumentType]
        )
        return plain(
            {
                "accuracy": self.score(self.counts(predictions, references).sum(0)),
                "macro_f1": full["macro avg"]["f1-score"],
                "classes": {name: full[name] for name in self.labels},
            }
        )

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `prediction` and, given (classes,) probabilities, one number a label."""
        out = {**record, "prediction": self.labels[int(prediction)]}
        if probabilities is not None:
            values = as_array(probabilities).tolist()
            out["probabilities"] = dict(zip(self.labels, values, strict=True))
        return out

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


def _label_name(table: Table, row: int, value: Any) -> str:
    if value is None or value == "":
        raise UserError(f"{table.at(row)}: the label is missing")
    if not isinstance(value, str | int):
        kind = type(value).__name__
        raise UserError(
            f"{table.at(row)}: label {value!r} is a {kind}; expected a name or a whole number"
        )
    return str(value)


def _sorted_labels(names: set[str]) -> list[str]:
    """By number if all are numbers, so that "10" comes after "9"; else by name."""
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int) if numeric else sorted(names)
