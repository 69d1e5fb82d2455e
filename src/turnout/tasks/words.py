"""Guess words of texts: hidden ones from both sides, or each next one; no labels are needed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from pydantic import Field
from transformers import DataCollatorForTokenClassification

from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.tasks.base import IGNORED, Collator, as_array, check_tokenizer, map_batches
from turnout.tasks.reading import TextConfig, TextTask
from turnout.tasks.table import is_hub_name, read_hub, read_table
from turnout.tasks.text import read_lines
from turnout.units.task_heads import HeadConfig

HIDDEN, SWAPPED = 0.8, 0.9  # of the chosen tokens: hidden up to here, another word up to there


class WordsConfig(TextConfig):
    """``guess``: ``masked``, a ``share`` of the tokens, four fifths of which are hidden, a tenth
    another word, a tenth themselves (BERT, Devlin et al. 2019, arXiv 1810.04805), drawn anew each
    epoch; or ``next``, each token from those before it, for backbones that look back only. A text
    counts up to ``max_length`` tokens. Files may be .txt, a text a line."""

    kind: Literal["words"] = "words"
    guess: Literal["masked", "next"] = "masked"
    share: float = Field(0.15, gt=0, lt=1)


class WordsTask(TextTask[WordsConfig]):
    """Raw rows hold a text; there are no labels to name. An answer is, for each place that is asked
    for, the label's log probability, the likeliest word, its log probability, and the label."""

    headline = "accuracy"
    model_class = TasksModel

    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        if source.endswith(".txt"):
            lines = [line for line in read_lines(source) if line.strip()]
            if not lines:
                raise UserError(f"{source}: no line has a text")
            return datasets.Dataset.from_dict({self._text: lines, self.config.label: lines})
        if is_hub_name(source):
            table = read_hub(source, split)
        else:
            table = read_table(source, self.config.columns, self.config.quoting)
        self._check_texts(table)
        table.columns[self.config.label] = table.columns[self._text]  # what is to be guessed
        return table.dataset()

    @property
    def _text(self) -> str:
        names = self.config.text_columns
        if len(names) > 1 or self.config.text_pair:
            raise UserError("a task of words reads one column of text")
        return names[0]

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(kind="words", width=1)

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """See Task.encode. Rows to predict ask for the words that they hide themselves (the
        tokenizer's mask), or for the next one."""
        config = self.config
        check_tokenizer(tokenizer, config.max_length)
        if config.guess == "masked" and tokenizer.mask_token_id is None:
            raise UserError(
                f"guess: masked needs a mask token, which the tokenizer {tokenizer.name_or_path!r} "
                "has not; use guess: next"
            )
        self._tokenizer = tokenizer
        learns = config.label in dataset.column_names

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            texts = columns[self._text]
            out = dict(tokenizer(texts, truncation=True, max_length=config.max_length))
            if not learns:
                out["labels"] = [self._asked(ids) for ids in out["input_ids"]]
                return out
            if config.guess == "next":
                out["labels"] = [[*ids[1:], IGNORED] for ids in out["input_ids"]]
                return out
            rows = [self._hidden(ids, 0) for ids in out["input_ids"]]
            out["input_ids"], out["labels"] = map(list, zip(*rows, strict=True))
            return out

        return map_batches(dataset, batch)

    @property
    def fixed(self) -> bool:
        return self.config.guess == "next"

    def vary(self, row: dict[str, Any], epoch: int) -> dict[str, Any]:
        """Other words hidden in each epoch."""
        if self.config.guess == "next":
            return row
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        whole = [token if label == IGNORED else label for token, label in pairs]
        ids, labels = self._hidden(whole, epoch)
        return {**row, "input_ids": ids, "labels": labels}

    def _hidden(self, ids: Sequence[int], epoch: int) -> tuple[list[int], list[int]]:
        """What stands there in place of the tokens, and the labels. Which are chosen is a function
        of text, seed and epoch; of a text with words at least one is."""
        tokenizer, text = self._tokenizer, np.asarray(ids, dtype=np.int64)
        random = np.random.default_rng([self.config.seed, epoch, zlib.crc32(text.tobytes())])
        words = np.flatnonzero(~np.isin(text, tokenizer.all_special_ids))
        count = min(len(words), max(1, round(self.config.share * len(words))))
        chosen = random.permutation(words)[:count]
        labels = np.full(len(text), IGNORED)
        labels[chosen] = text[chosen]
        draw = random.random(count)
        text[chosen[draw < HIDDEN]] = tokenizer.mask_token_id
        swapped = chosen[(draw >= HIDDEN) & (draw < SWAPPED)]
        text[swapped] = random.integers(0, tokenizer.vocab_size, len(swapped))
        return text.tolist(), labels.tolist()

    def _asked(self, ids: Sequence[int]) -> list[int]:
        """Marks (any label) where a row to predict asks for a word."""
        if self.config.guess == "next":
            return [*[IGNORED] * (len(ids) - 1), 0]
        mask = self._tokenizer.mask_token_id
        return [0 if token == mask else IGNORED for token in ids]

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        pad = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)
        return Collator(tokenizer, pad)

    def references(self, dataset: datasets.Dataset) -> list[None]:
        """Nothing: which words are asked for is known once they are hidden."""
        return [None] * len(dataset)

    def predictions(self, logits: Any, labels: Any = None) -> list[np.ndarray]:
        """(asked, 4) a row: see the class."""
        found, marks = as_array(logits), as_array(labels)
        return [
            np.concatenate([row[asked], mark[asked][:, None]], axis=1)
            for row, mark in zip(found, marks, strict=True)
            for asked in (mark != IGNORED,)
        ]

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, 3): words right, log probabilities summed, words."""
        return np.array(
            [[(row[:, 1] == row[:, 3]).sum(), row[:, 0].sum(), len(row)] for row in predictions],
            dtype=np.float64,
        ).reshape(-1, 3)

    def score(self, total: np.ndarray) -> float:
        """The share of words that are guessed right."""
        return float(total[0] / max(1.0, total[2]))

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """accuracy, perplexity by token, words."""
        total = self.counts(predictions, references).sum(0)
        perplexity = float(np.exp(-total[1] / max(1.0, total[2])))
        return {"accuracy": self.score(total), "perplexity": perplexity, "words": int(total[2])}

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """None: they are in the answers."""
        return None

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The row with `prediction`: for each place that it asks for the likeliest word."""
        words = [
            {"word": self._tokenizer.decode([int(word)]).strip(), "probability": float(np.exp(log))}
            for _, word, log, _ in prediction.tolist()
        ]
        return {**record, "prediction": words}
