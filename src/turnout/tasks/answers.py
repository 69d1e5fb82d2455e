"""Where in a text the answer to a question stands; the headline is the F1 of SQuAD.

Rajpurkar et al. 2016, arXiv 1606.05250, over the words of the answer's text: without punctuation,
English articles and capitals; each Chinese or Japanese character is a word (as MLQA counts Chinese,
Lewis et al. 2020, arXiv 1910.07475).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from string import punctuation
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

ARTICLES = frozenset({"a", "an", "the"})
ACCEPTED = "accepted_texts"  # column of all texts that are right
ALONE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


class AnswersConfig(DataConfig):
    """`answer` is a text, a list of texts that are all right, or SQuAD's ``{"text": [...],
    "answer_start": [...]}``: the first is learned, and the best match with any of them counts.
    `start` is the column of the answer's first character in the context (from 0), or a list of
    them; without it the first place where the answer stands is taken. `longest`: tokens of an
    answer. A context is cut where question and context exceed `max_length`, of which a question
    gets at most half; an answer that is cut off cannot be found there."""

    kind: Literal["answers"] = "answers"
    question: str = "question"
    context: str = "context"
    answer: str = "answer"
    start: str | None = None
    longest: int = Field(30, ge=1)
    max_length: int = Field(384, ge=3)


@dataclass(frozen=True)
class Answer:
    """What a row should give. texts: that are right. places: (first, last) character in the context
    of each token. span: first and last token of the first text; (-1, -1) = cut off."""

    texts: tuple[str, ...]
    context: str
    places: list[tuple[int, int]]
    span: tuple[int, int]

    def between(self, first: int, last: int) -> str:
        """The text of some tokens."""
        return self.context[self.places[first][0] : self.places[last][1]]


class AnswersTask(Task[AnswersConfig]):
    """`labels` of a row has a number a token: 0 in the context, BEGIN, END or BOTH at the ends of
    the answer, -100 outside of the context. Predictions are (first, last) token there."""

    headline = "f1"
    model_class = TasksModel

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        config = self.config
        table = read_hub(source, split) if is_hub_name(source) else read_table(source)
        self._check(table, [config.question, config.context])
        table.require(config.answer)
        if ACCEPTED in (config.question, config.context, config.answer):
            raise UserError(f"{source}: the column {ACCEPTED!r} needs another name")
        found = [self._answer(table, row) for row in range(len(table))]
        self.labels = ["answer"]
        columns = {name: table.columns[name] for name in (config.question, config.context)}
        columns[config.answer] = [texts[0] for texts, _ in found]
        columns[ACCEPTED] = [texts for texts, _ in found]
        columns["answer_start"] = [start for _, start in found]
        return Table(source, columns).dataset()

    def _answer(self, table: Table, row: int) -> tuple[list[str], int]:
        """The texts that are right, and where the first of them begins."""
        config = self.config
        value, start = table.columns[config.answer][row], None
        if isinstance(value, dict):
            value, start = value.get("text"), value.get("answer_start")
        if config.start is not None:
            table.require(config.start)
            start = table.columns[config.start][row]
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{table.at(row)}: {config.answer!r} is {value!r}; expected a text, or a list of "
                "texts that are right"
            )
        start = start[0] if isinstance(start, list) and start else start
        context, first = table.columns[config.context][row], texts[0]
        begin = context.find(first) if start is None else _whole(start, table.at(row))
        if not first.strip() or begin < 0 or context[begin : begin + len(first)] != first:
            raise UserError(f"{table.at(row)}: the answer {first!r} does not stand there")
        begin += len(first) - len(first.lstrip())
        return [text.strip() for text in texts], begin

    def _check(self, table: Table, names: list[str]) -> None:
        table.require(*names)
        for name in names:
            for row, value in enumerate(table.columns[name]):
                if not isinstance(value, str):
                    raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")

    @property
    def shown_columns(self) -> list[str]:
        return [self.config.question, self.config.context]

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
        most = max(1, self.config.max_length // 2)
        cut = self._tokenizer(
            questions,
            truncation=True,
            max_length=most,
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        ends = (places[-1][1] if len(places) == most else None for places in cut["offset_mapping"])
        return self._tokenizer(
            [text[:end] for text, end in zip(questions, ends, strict=True)],
            contexts,
            truncation="only_second",
            max_length=self.config.max_length,
            return_offsets_mapping=True,
        )

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return Collator(tokenizer, DataCollatorForTokenClassification(tokenizer))

    def references(self, dataset: datasets.Dataset) -> list[Answer]:
        """What each row should give; needs the tokenizer that `encode` was given."""
        config = self.config
        texts = dataset[config.question], dataset[config.context]
        marks = self.encode(dataset, self._tokenizer)["labels"]
        places = self._tokens(*map(list, texts))["offset_mapping"]
        accepted = dataset[ACCEPTED]
        return [
            Answer(tuple(accepted[row]), texts[1][row], places[row], _ends(np.asarray(marks[row])))
            for row in range(len(dataset))
        ]

    def predictions(self, logits: Any, labels: Any = None) -> list[tuple[int, int]]:
        """The best (first, last) token of each row, in the context, at most `longest` apart."""
        if labels is None:
            raise ValueError("`labels` (B, T) is needed: it marks the tokens of the context")
        return [
            best_span(row, np.asarray(marks) != IGNORED, self.config.longest)
            for row, marks in zip(as_array(logits), as_array(labels), strict=True)
        ]

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 3): exact, F1 of the words, each with the best of the right texts; 1."""
        rows = []
        for (first, last), gold in zip(predictions, references, strict=True):
            found = words_of(gold.between(first, last))
            right = [words_of(text) for text in gold.texts]
            best = max(overlap(found, wanted) for wanted in right)
            rows.append((float(found in right), best, 1.0))
        return np.array(rows, dtype=np.float64).reshape(-1, 3)

    def score(self, total: np.ndarray) -> float:
        """Mean F1 of the words."""
        return float(total[1] / total[2])

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """exact, f1, and how many answers were cut off."""
        total = self.counts(predictions, references).sum(0)
        cut = sum(gold.span[0] < 0 for gold in references)
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


def _whole(value: Any, place: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{place}: the start of the answer is {value!r}; expected a whole number"
        ) from None


def words_of(text: str) -> list[str]:
    """The words that an answer is judged by."""
    spaced = ALONE.sub(r" \g<0> ", text.lower())
    kept = "".join(
        c for c in spaced if c not in punctuation and not unicodedata.category(c).startswith("P")
    )
    return [word for word in kept.split() if word not in ARTICLES]


def overlap(found: list[str], wanted: list[str]) -> float:
    """F1 of two bags of words; of two empty ones 1."""
    if not found or not wanted:
        return float(found == wanted)
    both = sum((Counter(found) & Counter(wanted)).values())
    return 2 * both / (len(found) + len(wanted))


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
