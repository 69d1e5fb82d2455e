"""Cheap classifiers: they check whether a new row fits its label, and what new rows are worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from turnout.errors import UserError
from turnout.generation.augment import Agrees, Row


def classifier(rows: Sequence[Row]) -> Any:
    """Logistic regression on TF-IDF of words and pairs of words, trained on these rows. Raises
    UserError for fewer than two labels, or without words."""
    labels = [row.label for row in rows]
    if len(set(labels)) < 2:
        raise UserError(f"a classifier needs two labels or more; found {sorted(set(labels))}")
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+")
    model = make_pipeline(vectors, LogisticRegression(max_iter=1000, C=10.0))
    try:
        return model.fit([row.text for row in rows], labels)
    except ValueError as error:
        raise UserError(f"no classifier can be trained on these texts: {error}") from None


def plain_check(rows: Sequence[Row]) -> Agrees:
    """Probabilities of labels by a classifier trained on the originals."""
    model = classifier(rows)
    order = {label: place for place, label in enumerate(model.classes_)}

    def agrees(texts: Sequence[str], labels: Sequence[str]) -> list[float]:
        if not texts:
            return []
        found = model.predict_proba(list(texts))
        return [float(found[row, order[label]]) for row, label in enumerate(labels)]

    return agrees


def run_check(run: str | Path, device: str | None = None) -> Agrees:
    """Probabilities of labels by a classification that turnout trained. Raises UserError for a run
    of another task, and for labels that it does not know."""
    from turnout.run import open_run

    opened = open_run(run)
    if opened.recipe.task.kind != "classification" or len(opened.task().shown_columns) != 1:
        raise UserError(f"check: {run} is no run of a classification of one text")

    def agrees(texts: Sequence[str], labels: Sequence[str]) -> list[float]:
        strange = sorted(set(labels) - set(opened.labels))
        if strange:
            raise UserError(f"check: {run} has no label {strange[0]!r}; it has {opened.labels}")
        found = [row["probabilities"] for row in predicted(run, texts, device)]
        return [float(each[label]) for each, label in zip(found, labels, strict=True)]

    return agrees


def predicted(run: str | Path, texts: Sequence[str], device: str | None) -> list[dict[str, Any]]:
    """What a run says of each text."""
    from turnout.predict import predict

    if not texts:
        return []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.txt"
        file.write_text("".join(f"{' '.join(each.split())}\n" for each in texts), "utf-8")
        return [json.loads(line) for line in predict(run, str(file), device=device)]


@dataclass(frozen=True)
class Gain:
    """Accuracies, 0..1, on rows that were not learned from. rows: how many of them. low and high:
    95 % interval of the difference, by bootstrap over the rows."""

    without: float
    with_new: float
    low: float
    high: float
    rows: int

    @property
    def gain(self) -> float:
        """What the new rows are worth."""
        return self.with_new - self.without


def gain(rows: Sequence[Row], new: Sequence[Row], test: Sequence[Row]) -> Gain:
    """Accuracy of the cheap classifier on test rows without and with the new rows."""
    rights = []
    for learned in (rows, [*rows, *new]):
        answers = classifier(learned).predict([row.text for row in test])
        rights.append([a == row.label for a, row in zip(answers, test, strict=True)])
    return gain_of(*rights)


def gain_of(without: Sequence[bool], with_new: Sequence[bool]) -> Gain:
    """The difference of two models that answered the same rows, from which each had right."""
    from turnout.measure.stats import bootstrap_difference

    def counts(right: Sequence[bool]) -> np.ndarray:
        return np.array([[float(each), 1.0] for each in right])

    difference = bootstrap_difference(
        counts(with_new), counts(without), lambda total: float(total[0] / total[1])
    )
    first, second = float(np.mean(without)), float(np.mean(with_new))
    return Gain(first, second, difference.low, difference.high, len(without))
