"""Any number of labels a text; the headline is micro F1."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import numpy as np
from pydantic import Field
from sklearn.metrics import classification_report

from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import as_array, plain
from turnout.tasks.reading import TextConfig, TextTask
from turnout.units.task_heads import HeadConfig


class LabelsConfig(TextConfig):
    """The label column holds names with a `separator` between, or a list of names (.jsonl,
    .parquet); none is allowed."""

    kind: Literal["labels"] = "labels"
    separator: str = Field(";", min_length=1)


class LabelsTask(TextTask[LabelsConfig]):
    """A label is predicted where its probability passes a half."""

    headline = "micro_f1"
    model_class = TasksModel

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        config = self.config
        table = self._table(source, split)
        names = [self._names(table.at(row), v) for row, v in enumerate(table.columns[config.label])]
        table.columns[config.label] = names
        if not self.labels:
            self.labels = sorted({name for row in names for name in row})
            if not self.labels:
                raise UserError(f"{source}: no row has a label")
        known = set(self.labels)
        for row, found in enumerate(names):
            unknown = [name for name in found if name not in known]
            if unknown:
                raise UserError(
                    f"{table.at(row)}: label {unknown[0]!r} does not occur in training; "
                    f"known labels: {', '.join(map(repr, self.labels))}"
                )
        return table.dataset()

    def _names(self, place: str, value: Any) -> list[str]:
        if value is None:
            return []
        if isinstance(value, str):
            value = [name.strip() for name in value.split(self.config.separator)]
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise UserError(f"{place}: labels {value!r} are neither a text nor a list of names")
        return list(dict.fromkeys(name for name in value if name))

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="labels", width=len(self.labels))

    def _label_ids(self, values: list[Any]) -> list[Any]:
        place = {name: n for n, name in enumerate(self.labels)}
        rows = np.zeros((len(values), len(self.labels)), dtype=np.float32)
        for row, names in enumerate(values):
            rows[row, [place[name] for name in names]] = 1.0
        return rows.tolist()

    def references(self, dataset: datasets.Dataset) -> np.ndarray:
        """(examples, labels) of 0 and 1."""
        return np.array(self._label_ids(dataset[self.config.label]), dtype=np.int64)

    def predictions(self, logits: Any, labels: Any = None) -> np.ndarray:
        """(B, labels) of 0 and 1."""
        return (as_array(logits) > 0).astype(np.int64)

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 3): labels right, predicted, gold."""
        found, gold = np.asarray(predictions), np.asarray(references)
        return np.stack([(found * gold).sum(1), found.sum(1), gold.sum(1)], axis=1)

    def score(self, total: np.ndarray) -> float:
        """Micro F1; 0 when there is neither a predicted nor a gold label."""
        right, found, gold = total
        return float(2 * right / (found + gold)) if found + gold else 0.0

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """micro_f1, macro_f1, and `classes`: precision, recall, f1-score and support a label."""
        one = len(self.labels) == 1  # scikit-learn takes a single column as two classes
        full: Any = classification_report(
            np.ravel(references) if one else references,
            np.ravel(predictions) if one else predictions,
            labels=[1] if one else list(range(len(self.labels))),
            target_names=self.labels,
            output_dict=True,
            zero_division=0,  # pyright: ignore[reportArgumentType]
        )
        return plain(
            {
                "micro_f1": self.score(self.counts(predictions, references).sum(0)),
                "macro_f1": full["macro avg"]["f1-score"],
                "classes": {name: full[name] for name in self.labels},
            }
        )

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `prediction`, a list of names, and, given probabilities, one a label."""
        chosen = zip(self.labels, prediction, strict=True)
        out = {**record, "prediction": [name for name, on in chosen if on]}
        if probabilities is not None:
            values = as_array(probabilities).tolist()
            out["probabilities"] = dict(zip(self.labels, values, strict=True))
        return out

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """Each label's own."""
        return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))

    def logits_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Log odds."""
        inside = probabilities.clip(1e-12, 1 - 1e-12)
        return np.log(inside / (1 - inside))
