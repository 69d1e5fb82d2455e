"""A number a text (or a pair of texts), as a similarity or a grade; the headline is Pearson's r."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import numpy as np
from scipy.stats import spearmanr

from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import as_array, plain
from turnout.tasks.reading import TextConfig, TextTask
from turnout.units.task_heads import HeadConfig

TINY = 1e-12


class NumberConfig(TextConfig):
    """The label column holds a number."""

    kind: Literal["number"] = "number"


class NumberTask(TextTask[NumberConfig]):
    """`labels` holds the name of the column, and mean and spread of its numbers in training: heads
    learn numbers of mean 0 and spread 1, whatever their unit is."""

    headline = "pearson"
    model_class = TasksModel

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        table = self._table(source, split)
        name = self.config.label
        values = []
        for row, value in enumerate(table.columns[name]):
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if isinstance(value, bool) or not np.isfinite(number):
                raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a number")
            values.append(number)
        if not self.labels:
            if len(set(values)) < 2:
                raise UserError(f"{source}: every row has the number {values[0]}")
            self.labels = [name, repr(float(np.mean(values))), repr(float(np.std(values)))]
        table.columns[name] = values
        return table.dataset()

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="number", width=1)

    @property
    def _unit(self) -> tuple[float, float]:
        """Mean and spread."""
        return float(self.labels[1]), float(self.labels[2])

    def _label_ids(self, values: list[Any]) -> list[float]:
        mean, spread = self._unit
        return [(float(value) - mean) / spread for value in values]

    def references(self, dataset: datasets.Dataset) -> np.ndarray:
        """(examples,) numbers."""
        return np.array(dataset[self.config.label], dtype=np.float64)

    def predictions(self, logits: Any, labels: Any = None) -> np.ndarray:
        """(B,) numbers from (B, 1)."""
        mean, spread = self._unit
        return as_array(logits)[:, 0].astype(np.float64) * spread + mean

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 6): 1, x, y, x squared, y squared, x y."""
        x, y = np.asarray(predictions), np.asarray(references)
        return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def score(self, total: np.ndarray) -> float:
        """Pearson's r; 0 where it is negative or not defined."""
        n, x, y, xx, yy, xy = (float(value) for value in total)
        spreads = n * xx - x * x, n * yy - y * y
        if spreads[0] <= TINY * n * xx or spreads[1] <= TINY * n * yy:  # rounding, no spread
            return 0.0
        return max(0.0, (n * xy - x * y) / (spreads[0] * spreads[1]) ** 0.5)

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """pearson, spearman, mean absolute and root mean squared error."""
        wrong = np.asarray(predictions) - np.asarray(references)
        rank: Any = spearmanr(predictions, references)
        return plain(
            {
                "pearson": self.score(self.counts(predictions, references).sum(0)),
                "spearman": float(np.nan_to_num(rank.statistic)),
                "mean_absolute_error": float(np.abs(wrong).mean()),
                "root_mean_squared_error": float(np.sqrt((wrong**2).mean())),
            }
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """None: a number has no labels."""
        return None

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `prediction`, a number."""
        return {**record, "prediction": float(prediction)}
