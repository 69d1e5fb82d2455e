"""Named entities: one BIO tag a word; the headline is entity-level micro F1, as in conlleval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from sklearn.metrics import classification_report
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from turnout.errors import UserError
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
from turnout.tasks.conll import Scheme, spans
from turnout.tasks.ner_data import TAGS, TOKENS, read_tagged, read_words
from turnout.units.task_heads import HeadConfig

OUTSIDE = "O"


class NERConfig(DataConfig):
    """Files are CoNLL columns (`token_column`, `label_column`: from 0, or -1 for the last), or
    .jsonl, .parquet and Hub sets with a list of `tokens` and of `ner_tags`, `tags` or `labels` a
    row (name others by giving the columns as text). `scheme` IOB1 or BIO checks the tags; "auto"
    takes both."""

    kind: Literal["ner"] = "ner"
    token_column: int | str = 0
    label_column: int | str = -1
    scheme: Scheme = "auto"


class NERTask(Task[NERConfig]):
    """Raw rows: `tokens` and `tags` (BIO whatever the file had). Words cut off by `max_length` are
    predicted "O": they count, as in use."""

    headline = "f1"
    model_class = AutoModelForTokenClassification

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        config = self.config
        data = read_tagged(source, split, config.token_column, config.label_column, config.scheme)
        if not self.labels:
            types = sorted({tag[2:] for row in data.tags for tag in row if tag != OUTSIDE})
            if not types:
                raise UserError(f"{source}: every tag is 'O'; there are no entities to learn")
            self.labels = [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
        known = set(self.labels)
        for row, tags in enumerate(data.tags):
            for word, tag in enumerate(tags):
                if tag not in known:
                    raise UserError(
                        f"{data.at(row, word)}: label {tag!r} does not occur in training; "
                        f"known labels: {', '.join(map(repr, self.labels))}"
                    )
        return datasets.Dataset.from_dict({TOKENS: data.tokens, TAGS: data.tags})

    @property
    def shown_columns(self) -> list[str]:
        return [TOKENS]

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="tag", width=len(self.labels))

    def read(self, path: str) -> datasets.Dataset:
        """See Task.read. Plain texts are cut into words (see ``cut_words``)."""
        return datasets.Dataset.from_dict({TOKENS: read_words(path, self.config.token_column)})

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """See Task.encode. `labels`: the word's id on its first sub-token, -100 on all else;
        without tags the id of "O", so that it still marks the words. `word_count`: words before
        the cut."""
        check_tokenizer(tokenizer, self.config.max_length)
        ids = {name: index for index, name in enumerate(self.labels)}

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            words = columns[TOKENS]
            out, starts = _tokenize(tokenizer, words, self.config.max_length)
            tags = columns.get(TAGS) or [[OUTSIDE] * len(row) for row in words]
            out["labels"] = [
                _scatter([ids[tag] for tag in row], at, len(tokens))
                for row, at, tokens in zip(tags, starts, out["input_ids"], strict=True)
            ]
            out["word_count"] = [len(row) for row in words]
            return out

        return map_batches(dataset, batch)

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return Collator(tokenizer, DataCollatorForTokenClassification(tokenizer))

    def references(self, dataset: datasets.Dataset) -> list[list[int]]:
        """A list of gold ids a sentence, one a word, cut words included."""
        ids = {name: index for index, name in enumerate(self.labels)}
        return [[ids[tag] for tag in row] for row in dataset[TAGS]]

    def predictions(self, logits: Any, labels: Any = None) -> list[list[int]]:
        """A list of ids a sentence from logits (B, T, labels) and the batch's `labels` (B, T), one
        for each word that the model saw; `counts`, `report` and `describe` add "O" for the rest."""
        if labels is None:
            raise ValueError("`labels` (B, T) is needed: it marks the first sub-token of each word")
        best = as_array(logits).argmax(-1)
        return [
            ids[mask].tolist() for ids, mask in zip(best, as_array(labels) != IGNORED, strict=True)
        ]

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 3): entities right, predicted, gold."""
        rows = []
        for found, gold in zip(
            self._names(predictions, references), self._names(references), strict=True
        ):
            found_spans, gold_spans = spans(found), spans(gold)
            rows.append((len(found_spans & gold_spans), len(found_spans), len(gold_spans)))
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    def score(self, total: np.ndarray) -> float:
        """Micro F1; 0 when there is neither a predicted nor a gold entity."""
        right, found, gold = total
        return float(2 * right / (found + gold)) if found + gold else 0.0

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """`entities`: seqeval's report (each type, micro, macro, weighted avg); `tokens`:
        scikit-learn's report over the tags of all words, cut ones included."""
        from seqeval.metrics import classification_report as entity_report

        found, gold = self._names(predictions, references), self._names(references)
        total = self.counts(predictions, references).sum(0)
        flat_found = [tag for row in found for tag in row]
        flat_gold = [tag for row in gold for tag in row]
        options: dict[str, Any] = {"output_dict": True, "zero_division": 0}
        # seqeval fails where there is no entity at all
        entities = entity_report(gold, found, **options) if total[1:].any() else {}
        tokens = classification_report(flat_gold, flat_found, labels=self.labels, **options)
        return plain({"f1": self.score(total), "entities": entities, "tokens": tokens})

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """`tokens`, `tags` and `entities`; `cut_words` where max_length cut some; given
        probabilities (words, labels), also `confidence`: that of each word's tag."""
        words = list(record[TOKENS])
        tags = self._names([prediction], [words])[0]
        out: dict[str, Any] = {
            "tokens": words,
            "tags": tags,
            "entities": [
                {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
                for kind, start, end in sorted(spans(tags), key=lambda span: span[1])
            ],
        }
        if len(prediction) < len(words):
            out["cut_words"] = len(words) - len(prediction)
        if probabilities is not None:
            out["confidence"] = as_array(probabilities).max(-1).tolist()
        return out

    def _names(self, rows: Any, like: Any = None) -> list[list[str]]:
        """Ids to names; with `like`, each row is filled up with "O" to the length it has there."""
        lengths = [len(row) for row in (rows if like is None else like)]
        return [
            [self.labels[i] for i in row] + [OUTSIDE] * (length - len(row))
            for row, length in zip(rows, lengths, strict=True)
        ]


def _tokenize(
    tokenizer: Any, words: list[list[str]], max_length: int
) -> tuple[dict[str, Any], list[list[int]]]:
    """The encoding, and a sentence's positions of the first sub-token of each word it keeps."""
    encoding = _call(tokenizer, words, max_length)
    starts = [_starts(encoding.word_ids(row)) for row in range(len(words))]
    lost = [row for row, at in enumerate(starts) if list(at) != list(range(len(at)))]
    if lost:
        # a word of only control characters has no sub-token: give it one, so that none is skipped
        filler = tokenizer.unk_token or "?"
        filled = list(words)
        for row in lost:
            last = max(starts[row])
            filled[row] = [
                word if index in starts[row] or index > last else filler
                for index, word in enumerate(words[row])
            ]
        encoding = _call(tokenizer, filled, max_length)
        starts = [_starts(encoding.word_ids(row)) for row in range(len(words))]
        if any(list(at) != list(range(len(at))) for at in starts):
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} drops words at the start of a long "
                'sentence; set "truncation_side": "right" in its tokenizer_config.json'
            )
    return dict(encoding), [list(at.values()) for at in starts]


def _call(tokenizer: Any, words: list[list[str]], max_length: int) -> Any:
    return tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)


def _starts(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Word -> position of its first sub-token."""
    at: dict[int, int] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            at.setdefault(word, position)
    return at


def _scatter(ids: list[int], positions: list[int], length: int) -> list[int]:
    row = [IGNORED] * length
    for position, label in zip(
        positions, ids, strict=False
    ):  # words beyond the cut have no position
        row[position] = label
    return row
