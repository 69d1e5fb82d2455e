"""Write on: a causal language model on plain texts; each token is predicted from those before it.

Quality is the likelihood of a byte, 2 ** -(bits per byte): the geometric mean of the probabilities
that a model gives to the bytes of the text, by way of its tokens. It lies between 0 and 1, more is
better, and models with different tokenizers can be compared by it. Perplexity by token and bits per
byte stand beside it in every report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import AutoModelForCausalLM, PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row
from turnout.execute.likelihood import check_causal, log_likelihood
from turnout.execute.pool import BulkResult
from turnout.hosts.sight import keeps_apart, looks_back
from turnout.routers.base import check_looks_back
from turnout.tasks.base import IGNORED, DataConfig, Task, check_tokenizer, map_batches
from turnout.tasks.language_data import Documents, packed, read_documents, tokens_of, windows
from turnout.units.task_heads import HeadConfig

ROW = "_row"  # column of the number of a document, while it is cut
COLUMNS = ("input_ids", "attention_mask", "labels", "bytes", "document")
Files = str | Annotated[list[str], Field(min_length=1)]


class LanguageConfig(DataConfig):
    """`train`, `validation`, `test`: a file or several; a .txt file holds documents as `documents`
    says (`line`: one a line, `blank-line`: with empty lines between, `file`: it is one), a table
    one a row of the column `text`. A document that is longer than `max_length` is cut into windows.
    `stride`: tokens from the beginning of one window to that of the next, when texts are judged;
    each token is judged once, and less than `max_length` gives later tokens more to go on from;
    None = windows share one token. `packing`: training rows hold several documents that do not see
    each other. `ends`: documents end with the tokenizer's end-of-text token, which is learned and
    judged as any other."""

    kind: Literal["language"] = "language"
    train: Files  # type: ignore[assignment]
    validation: Files | None = None  # type: ignore[assignment]
    test: Files | None = None  # type: ignore[assignment]
    text: str = "text"
    documents: Documents = "line"
    max_length: int = Field(256, ge=3)
    stride: int | None = Field(None, ge=1)
    packing: bool = True
    ends: bool = True

    @model_validator(mode="after")
    def _overlap(self) -> LanguageConfig:
        if self.stride is not None and self.stride >= self.max_length:
            raise ValueError(
                f"stride: found {self.stride}; it must be below max_length ({self.max_length}), so "
                "that each token but the first has one before it"
            )
        return self


class LanguageTask(Task[LanguageConfig]):
    """An example is a window. An answer holds its log probability in nats, its labels, how many of
    them were the likeliest token, and the bytes that they stand for."""

    headline = "byte_likelihood"
    model_class = AutoModelForCausalLM
    over_words: ClassVar[bool] = True

    def __init__(self, config: LanguageConfig, labels: Sequence[str] | None = None):
        super().__init__(config)  # a host's labels are of some classifier
        self.packs = False  # until a host is known to keep texts apart

    def _read_labelled(self, source: str | list[str], split: str) -> datasets.Dataset:
        files = [source] if isinstance(source, str) else source
        found = [text for file in files for text in self._documents(file, split)]
        return datasets.Dataset.from_dict({self.config.text: found})

    def _documents(self, file: str, split: str) -> list[str]:
        return read_documents(file, split, self.config.text, self.config.documents)

    @property
    def head(self) -> HeadConfig:
        raise UserError(
            "a language model writes with the head of its own, not with one beside others: use "
            "kind: words with guess: next there"
        )

    def read(self, path: str) -> datasets.Dataset:
        """See Task.read; a document a row, as in training."""
        return self._read_labelled(path, "test")

    @property
    def shown_columns(self) -> list[str]:
        return [self.config.text]

    def meet(self, model: PreTrainedModel) -> None:
        """See Task.meet. Texts are packed only where the host keeps them apart."""
        check_causal(model)
        if not looks_back(model):
            raise UserError(
                f"{type(model).__name__}: its tokens see later ones, which they are to predict; "
                "take a decoder, or a host whose config says is_decoder: true"
            )
        self.packs = self.config.packing and keeps_apart(model)

    def check_routed(self, model: PreTrainedModel) -> None:
        """See Task.check_routed: later tokens must not decide what runs for earlier ones."""
        routing: Any = model.turnout
        check_looks_back(routing.all_routers(), "so it would have read what it is to predict")

    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """Windows to judge: input_ids, attention_mask, labels, bytes; those without a label are
        left out, and `document` says of which row each is."""
        config = self.config
        return self._windows(dataset, tokenizer, config.stride or config.max_length - 1)

    def encode_train(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """Rows to learn from: windows without overlap but for one token, packed where the host
        allows it, in the order of the documents."""
        config = self.config
        found = self._windows(dataset, tokenizer, config.max_length - 1)
        if not self.packs:
            return found
        return datasets.Dataset.from_list(packed(found.to_list(), config.max_length))

    def _windows(self, dataset: datasets.Dataset, tokenizer: Any, step: int) -> datasets.Dataset:
        config = self.config
        check_tokenizer(tokenizer, config.max_length)
        texts = dataset.add_column(ROW, list(range(len(dataset))))  # type: ignore[call-arg]

        def batch(columns: dict[str, list[Any]]) -> dict[str, Any]:
            out: dict[str, list[Any]] = {name: [] for name in COLUMNS}
            documents = tokens_of(columns[config.text], tokenizer, config.ends)
            for row, document in zip(columns[ROW], documents, strict=True):
                for window in windows(document, config.max_length, step):
                    mask = [1] * len(window["input_ids"])
                    window |= {"attention_mask": mask, "document": row}
                    for name in COLUMNS:
                        out[name].append(window[name])
            return out

        found = map_batches(texts, batch)
        if not len(found):
            raise UserError("no text has two tokens, so there is nothing to predict")
        return found

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        pad = tokenizer.pad_token_id
        return lambda rows: collate(rows, 0 if pad is None else pad)

    def run(
        self, model: PreTrainedModel, rows: Sequence[Row], collate: Collate, batch_tokens: int
    ) -> BulkResult:
        """See Task.run: (4,) a row, see the class."""
        result = log_likelihood(model, rows, collate, batch_tokens)
        result.logits = [
            np.append(sums, float(row["bytes"]))
            for sums, row in zip(result.logits, rows, strict=True)
        ]
        return result

    def references(self, dataset: datasets.Dataset) -> list[None]:
        """Nothing: the text itself is what is to be predicted."""
        return [None] * len(dataset)

    def predictions(self, logits: Any, labels: Any = None) -> np.ndarray:
        """The answers as they are."""
        return np.asarray(logits)

    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(windows, 4): log probability, tokens, likeliest tokens, bytes."""
        return np.asarray(predictions, dtype=np.float64).reshape(-1, 4)

    def score(self, total: np.ndarray) -> float:
        """The likelihood of a byte."""
        return 2.0 ** -bits_per_byte(total)

    def told(self, total: np.ndarray) -> str:
        """See Task.told."""
        rest = f"perplexity {perplexity(total):.2f}, {bits_per_byte(total):.4f} bits per byte"
        return f"{self.score(total):.4f} ({rest})"

    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """perplexity by token, bits_per_byte, accuracy of the likeliest token, tokens, bytes."""
        total = self.counts(predictions, references).sum(0)
        return {
            "perplexity": perplexity(total),
            "bits_per_byte": bits_per_byte(total),
            "accuracy": float(total[2] / max(1.0, total[1])),
            "tokens": int(total[1]),
            "bytes": int(total[3]),
        }

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """None: an answer is a sum over a text."""
        return None

    def joined(self, rows: datasets.Dataset, result: BulkResult, count: int) -> BulkResult:
        """See Task.joined: the sums of a document's windows, and the mean of what ran in them."""
        documents = np.asarray(rows["document"])
        sums = np.zeros((count, 4))
        np.add.at(sums, documents, np.stack(result.logits))
        tokens = np.array([len(ids) for ids in rows["input_ids"]], dtype=np.float64)
        ran = np.bincount(documents, result.units * tokens, count)
        units = ran / np.bincount(documents, tokens, count).clip(1.0)
        return BulkResult(list(sums), units, result.use, result.share, result.saved)

    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """The document with its perplexity, bits per byte and number of tokens."""
        total = np.asarray(prediction)
        found: dict[str, Any] = {"perplexity": None, "bits_per_byte": None}  # of a single token
        if total[1]:
            found = {"perplexity": perplexity(total), "bits_per_byte": bits_per_byte(total)}
        return {**record, **found, "tokens": int(total[1])}


def perplexity(total: np.ndarray) -> float:
    """exp of the mean of -log p over tokens."""
    return math.exp(min(700.0, -float(total[0]) / max(1.0, float(total[1]))))


def bits_per_byte(total: np.ndarray) -> float:
    """Nats over ln 2, over the UTF-8 bytes of the text."""
    return -float(total[0]) / math.log(2) / max(1.0, float(total[3]))


def collate(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right. Packed ones have positions and no mask, as hosts want it: their
    padding is one more text of its own, without labels."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: Callable[[int], list[int]]) -> torch.Tensor:
        return torch.tensor([[*row[name], *fill(longest - len(row[name]))] for row in rows])

    batch = {"input_ids": padded("input_ids", lambda n: [pad] * n)}
    if "labels" in rows[0]:
        batch["labels"] = padded("labels", lambda n: [IGNORED] * n)
    if "position_ids" in rows[0]:
        batch["position_ids"] = padded("position_ids", lambda n: list(range(n)))
    else:
        batch["attention_mask"] = padded("attention_mask", lambda n: [0] * n)
    return batch
