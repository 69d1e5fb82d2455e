"""Which text answers which: both become vectors, near each other; the headline is recall at 1."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import datasets
import numpy as np
from pydantic import Field

from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import as_array, map_batches, plain
from turnout.tasks.reading import TextConfig, TextTask
from turnout.units.task_heads import HeadConfig

AT = (1, 3, 10)  # places down to which an answer counts as found


class RankingConfig(TextConfig):
    """`label` is the column of the text that belongs to `text`: the answer to a question, a
    translation, the same said otherwise. `width`: of the vectors."""

    kind: Literal["ranking"] = "ranking"
    label: str = "answer"
    width: int = Field(128, ge=2)


class RankingTask(TextTask[RankingConfig]):
    """A labelled row is encoded as two, text and answer; `labels` numbers the answers, so that
    equal ones have one number. Every answer of the split is a candidate for every text."""

    headline = "recall_at_1"
    model_class = TasksModel
    together: ClassVar[int] = 2

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        table, name = self._table(source, split), self.config.label
        for row, value in enumerate(table.columns[name]):
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")
        if len(set(table.columns[name])) < 2:
            raise UserError(f"{source}: every row has the same {name!r}; there is nothing to rank")
        self.labels = [name]
        return table.dataset()

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="vector", width=self.config.width)

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """Two rows for each labelled one; else one, of its text."""
        if self.config.label not in dataset.column_names:
            return super().encode(dataset, tokenizer)
        texts = super().encode(dataset.remove_columns(self.config.label), tokenizer)
        answers = dataset[self.config.label]
        place = {answer: n for n, answer in enumerate(dict.fromkeys(answers))}

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            length = self.config.max_length
            return dict(tokenizer(columns["text"], truncation=True, max_length=length))

        found = map_batches(datasets.Dataset.from_dict({"text": list(answers)}), batch)
        both = datasets.concatenate_datasets([texts, found])
        count = len(answers)
        order = np.arange(2 * count).reshape(2, count).T.flatten()  # text 0, answer 0, text 1, ...
        numbers = np.repeat([place[answer] for answer in answers], 2)
        return both.select(order).add_column("labels", numbers.tolist())  # type: ignore[call-arg]

    def references(self, dataset: datasets.Dataset) -> np.ndarray:
        """(2 N,) numbers of the answers, as in `labels`."""
        answers = dataset[self.config.label]
        place = {answer: n for n, answer in enumerate(dict.fromkeys(answers))}
        return np.repeat([place[answer] for answer in answers], 2)

    def predictions(self, logits: Any, labels: Any = None) -> np.ndarray:
        """(2 N, width) vectors."""
        return as_array(logits)

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(N, 5) for N texts: found at 1, 3 and 10, 1 / place, 1. An answer as near as the right
        one counts as nearer."""
        vectors, number = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        first = np.unique(number[1::2], return_index=True)[1]  # each answer is one candidate
        candidates, which = vectors[1::2][first], number[1::2][first]
        close = vectors[::2] @ candidates.T
        own = close[np.arange(len(close)), np.searchsorted(which, number[::2])]
        place = (close >= own[:, None]).sum(1)
        return np.stack([*(place <= at for at in AT), 1 / place, np.ones(len(place))], 1)

    def score(self, total: np.ndarray) -> float:
        """Recall at 1."""
        return float(total[0] / total[-1])

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """Recall at 1, 3 and 10, mean reciprocal rank, and how many candidates there were."""
        total = self.counts(predictions, references).sum(0)
        found = {f"recall_at_{at}": total[n] / total[-1] for n, at in enumerate(AT)}
        return plain(
            {
                **found,
                "mean_reciprocal_rank": total[-2] / total[-1],
                "candidates": len(np.unique(references)),
            }
        )

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `vector`: the nearer two of them, by their inner product, the better."""
        return {**record, "vector": [round(float(value), 6) for value in prediction]}

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """None: a vector has none."""
        return None
