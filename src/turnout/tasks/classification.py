"""One label a text (or a pair of texts); the headline is accuracy."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import numpy as np
from sklearn.metrics import classification_report
from transformers import AutoModelForSequenceClassification

from turnout.errors import UserError
from turnout.tasks.base import as_array, plain
from turnout.tasks.reading import TextConfig, TextTask
from turnout.tasks.table import Table
from turnout.units.task_heads import HeadConfig


class ClassificationConfig(TextConfig):
    """The label column holds one name, or whole number, a row."""

    kind: Literal["classification"] = "classification"


class ClassificationTask(TextTask[ClassificationConfig]):
    headline = "accuracy"
    model_class = AutoModelForSequenceClassification

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        config = self.config
        table = self._table(source, split)
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

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="class", width=len(self.labels))

    def _label_ids(self, values: list[Any]) -> list[int]:
        ids = {name: index for index, name in enumerate(self.labels)}
        return [ids[name] for name in values]

    def references(self, dataset: datasets.Dataset) -> np.ndarray:
        """(examples,) gold ids."""
        return np.array(self._label_ids(dataset[self.config.label]))

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
