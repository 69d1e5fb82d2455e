"""Where in a text the answer to a question stands; the headline is F1 over tokens, as in SQuAD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import datasets
import numpy as np
import torch
from pydantic import Field
from transformers import DataCollatorForTokenClassification

from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import (
    IGNORED,
    Collator,
    DataConfig,
    Task,
    as_array,
    check_tokenizer,
    map_batches,
    plain,
)
from turnout.tasks.table import Table, is_hub_name, read_hub, read_table
from turnout.units.task_heads import BEGIN, BOTH, END, HeadConfig


class AnswersConfig(DataConfig):
    """`start` is the column of the answer's first character in the context (from 0); without it the
    first place where the answer stands is taken. `longest`: tokens of an answer. A context is cut
    where question and context exceed `max_length`; an answer that is cut off cannot be found."""

    kind: Literal["answers"] = "answers"
    question: str = "question"
    context: str = "context"
    answer: str = "answer"
    start: str | None = None
    longest: int = Field(30, ge=1)
    max_length: int = Field(384, ge=3)


class AnswersTask(Task[AnswersConfig]):
    """`labels` of a row has a number a token: 0 in the context, BEGIN, END or BOTH at the ends of
    the answer, -100 outside of the context. References and predictions are (first, last) token
    there; (-1, -1) = cut off."""

    headline = "f1"
    model_class = TasksModel

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        config = self.config
        table = read_hub(source, split) if is_hub_name(source) else read_table(source)
        self._check(table, [config.question, config.context, config.answer])
        starts = []
        for row, answer in enumerate(table.columns[config.answer]):
            context = table.columns[config.context][row]
            start = context.find(answer) if config.start is None else self._start(table, row)
            if not answer or context[start : start + len(answer)] != answer or start < 0:
                raise UserError(f"{table.at(row)}: the answer {answer!r} does not stand there")
            starts.append(start)
        self.labels = ["answer"]
        names = (config.question, config.context, config.answer)
        columns = {name: table.columns[name] for name in names}
        return Table(source, {**columns, "answer_start": starts}).dataset()

    def _start(self, table: Table, row: int) -> int:
        assert self.config.start is not None
        table.require(self.config.start)
        value = table.columns[self.config.start][row]
        try:
            return int(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{table.at(row)}: {self.config.start!r} is {value!r}; expected a whole number"
            ) from None

    def _check(self, table: Table, names: list[str]) -> None:
        table.require(*names)
        for name in names:
            for row, value in enumerate(table.columns[name]):
                if not isinstance(value, str):
                    raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="span", width=2)

    def read(self, path: str) -> datasets.Dataset:
        """See Task.read; a table with question and context."""
        table = read_table(path)
        names = [self.config.question, self.config.context]
        self._check(table, names)
        return Table(path, {name: table.columns[name] for name in names}).dataset()

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """See Task.encode."""
        config = self.config
        check_tokenizer(tokenizer, config.max_length)
        self._tokenizer = tokenizer  # `describe` finds the answer's text with it
        labelled = "answer_start" in dataset.column_names

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            texts = columns[config.question], columns[config.context]
            out = self._tokens(*texts)
            offsets, labels = out.pop("offset_mapping"), []
            for row, places in enumerate(offsets):
                marks = np.where(np.array(out.sequence_ids(row)) == 1, 0, IGNORED)
                if labelled:
                    begin = columns["answer_start"][row]
                    _mark(marks, places, begin, begin + len(columns[config.answer][row]))
                labels.append(marks.tolist())
            return {**out, "labels": labels}

        return map_batches(dataset, batch)

    def _tokens(self, questions: list[str], contexts: list[str]) -> Any:
        return self._tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=self.config.max_length,
            return_offsets_mapping=True,
        )

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return Collator(tokenizer, DataCollatorForTokenClassification(tokenizer))

    def references(self, dataset: datasets.Dataset) -> list[tuple[int, int]]:
        """(first, last) token of each answer; needs the tokenizer that `encode` was given."""
        rows = self.encode(dataset, self._tokenizer)["labels"]
        return [_ends(np.asarray(row)) for row in rows]

    def predictions(self, logits: Any, labels: Any = None) -> list[tuple[int, int]]:
        """The best (first, last) token of each row, in the context, at most `longest` apart."""
        if labels is None:
            raise ValueError("`labels` (B, T) is needed: it marks the tokens of the context")
        return [
            best_span(row, np.asarray(marks) != IGNORED, self.config.longest)
            for row, marks in zip(as_array(logits), as_array(labels), strict=True)
        ]

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 3): exact, F1 of the tokens, 1."""
        rows = []
        for (first, last), (start, end) in zip(predictions, references, strict=True):
            both = max(0, min(last, end) - max(first, start) + 1) if start >= 0 else 0
            size = (last - first + 1) + (end - start + 1)
            rows.append((float((first, last) == (start, end)), 2 * both / size, 1.0))
        return np.array(rows, dtype=np.float64).reshape(-1, 3)

    def score(self, total: np.ndarray) -> float:
        """Mean F1 of the tokens."""
        return float(total[1] / total[2])

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """exact, f1, and how many answers were cut off."""
        total = self.counts(predictions, references).sum(0)
        cut = sum(start < 0 for start, _ in references)
        return plain({"exact": total[0] / total[2], "f1": total[1] / total[2], "cut_off": cut})

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `prediction`, the answer's text, and where it begins."""
        config = self.config
        tokens = self._tokens([record[config.question]], [record[config.context]])
        places = tokens["offset_mapping"][0]
        begin, end = places[prediction[0]][0], places[prediction[1]][1]
        return {**record, "prediction": record[config.context][begin:end], "start": begin}

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """None: tokens are chosen in pairs."""
        return None


def best_span(logits_T2: np.ndarray, may_T: np.ndarray, longest: int) -> tuple[int, int]:
    """The pair of tokens with the largest sum of logits: the first before the last, not too far."""
    begin = np.where(may_T, logits_T2[:, 0], -np.inf)
    end = np.where(may_T, logits_T2[:, 1], -np.inf)
    best, found = -np.inf, (0, 0)
    for start in np.argsort(-begin, kind="stable")[:20]:
        stop = start + int(np.argmax(end[start : start + longest]))
        if begin[start] + end[stop] > best:
            best, found = begin[start] + end[stop], (int(start), int(stop))
    return found


def _mark(marks: np.ndarray, places: list[tuple[int, int]], begin: int, end: int) -> None:
    """Mark the tokens in which an answer begins and ends; nothing where it is cut off."""
    inside = [
        token
        for token, (first, last) in enumerate(places)
        if marks[token] != IGNORED and first < end and last > begin
    ]
    if not inside or places[inside[-1]][1] < end:
        return
    if inside[0] == inside[-1]:
        marks[inside[0]] = BOTH
    else:
        marks[inside[0]], marks[inside[-1]] = BEGIN, END


def _ends(marks: np.ndarray) -> tuple[int, int]:
    first = np.flatnonzero((marks == BEGIN) | (marks == BOTH))
    last = np.flatnonzero((marks == END) | (marks == BOTH))
    return (int(first[0]), int(last[0])) if len(first) else (-1, -1)
