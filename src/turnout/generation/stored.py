"""Stored answers: the nearest question's answer is shown to the model beside a new question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer

from turnout.errors import UserError
from turnout.tasks.table import read_table


@dataclass(frozen=True)
class Found:
    """A stored question and its answer. likeness: cosine of the TF-IDF vectors, 0..1."""

    question: str
    answer: str
    likeness: float


class Stored:
    """Questions with answers. Nearness is the cosine of TF-IDF vectors (Salton & Buckley 1988) of
    words and pairs of words."""

    def __init__(self, questions: list[str], answers: list[str]) -> None:
        self.questions, self.answers = questions, answers
        self._vectors: Any = TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+"
        )
        try:
            self._matrix: Any = self._vectors.fit_transform(questions)
        except ValueError:
            raise UserError("stored answers: the questions hold no word") from None

    @classmethod
    def read(cls, path: str) -> Stored:
        """Columns `question` and `answer` of a CSV, TSV, JSON lines or Parquet file. Raises
        UserError: no such file or column, or a value that is not a text."""
        table = read_table(path)
        table.require("question", "answer")
        for name in ("question", "answer"):
            for row, value in enumerate(table.columns[name]):
                if not isinstance(value, str):
                    raise UserError(f"{table.at(row)}: {name!r} is {value!r}; expected a text")
        return cls(table.columns["question"], table.columns["answer"])

    def nearest(self, question: str, most: int = 2, least: float = 0.2) -> list[Found]:
        """At most so many, nearest first, with at least this likeness."""
        likeness = (self._matrix @ self._vectors.transform([question]).T).toarray().ravel()
        order = likeness.argsort(kind="stable")[::-1][:most]
        return [
            Found(self.questions[place], self.answers[place], float(likeness[place]))
            for place in order
            if likeness[place] >= least
        ]


def shown_with(found: list[Found]) -> str:
    """What the model reads of stored answers; nothing where none is near."""
    if not found:
        return ""
    lines = [f"- {each.question} {each.answer}" for each in found]
    return "\n".join(["Known answers:", *lines])
