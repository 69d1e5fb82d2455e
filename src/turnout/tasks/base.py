"""What a task is: data -> features -> metric. One file, one task; this page is what they share."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import datasets
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row
from turnout.execute.generate import run_bulk
from turnout.execute.pool import BulkResult
from turnout.flow import IGNORED as IGNORED
from turnout.tasks.table import no_progress
from turnout.units.task_heads import HeadConfig


class DataConfig(BaseModel):
    """The fields every task has. `train`, `validation`, `test`: files, or names on the Hub."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    train: str
    validation: str | None = None
    test: str | None = None
    max_length: int = Field(128, ge=3)
    validation_share: float = Field(0.1, gt=0, lt=1)
    max_train: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)


C = TypeVar("C", bound=DataConfig)


class Task(ABC, Generic[C]):
    """One task of one recipe. `labels[i]` is the name of class i; empty until `load` finds them,
    unless a saved run gives them. together: so many encoded rows, one after the other, belong into
    one batch. generates: answers are written, token by token, with the options ``generation``.
    over_words: logits are a number for each word of a vocabulary, too much to keep; ``run`` answers
    with less."""

    headline: ClassVar[str]
    together: ClassVar[int] = 1
    generates: ClassVar[bool] = False
    over_words: ClassVar[bool] = False
    model_class: ClassVar[Any]

    def __init__(self, config: C, labels: Sequence[str] | None = None):
        self.config = config
        self.labels: list[str] = list(labels or [])

    def load(self) -> dict[str, datasets.Dataset]:
        """The splits "train", "validation" and, if the config names one, "test"; raw columns kept.

        Without a validation file, a seeded `validation_share` of the training rows is set apart.
        Labels are those of the whole training file. Raises UserError for whatever is wrong with a
        file, and for a label that training does not have (file, line, label, known labels).
        """
        names = {"validation": self.config.validation, "test": self.config.test}
        train = self._read_labelled(self.config.train, "train")
        splits = {key: self._read_labelled(name, key) for key, name in names.items() if name}
        generator = np.random.default_rng(self.config.seed)
        order = generator.permutation(len(train))
        if "validation" not in splits:
            held = max(1, round(len(train) * self.config.validation_share))
            if held >= len(train):
                raise UserError(
                    f"{self.config.train} has {len(train)} row(s): too few to set any apart for "
                    "validation; name a `validation` file"
                )
            splits["validation"] = train.select(np.sort(order[:held]))
            order = order[held:]
        if len(order) < len(train) or self.config.max_train:
            train = train.select(order[: self.config.max_train])
        return {"train": train, **splits}

    @abstractmethod
    def _read_labelled(self, source: str, split: str) -> datasets.Dataset:
        """Read one split, checked; sets `labels` from the first one read if they are not known."""

    @property
    @abstractmethod
    def head(self) -> HeadConfig:
        """What answers this task in a model of several; its labels must be known."""

    @abstractmethod
    def read(self, path: str) -> datasets.Dataset:
        """Rows to predict; a label column is not needed and not returned. "-" (standard input)
        and .txt files have one text a line. Raises UserError like `load`."""

    def shown(self, dataset: datasets.Dataset) -> list[Any]:
        """What a model is shown of each raw row, without its label, to tell rows apart."""
        columns = [dataset[name] for name in self.shown_columns]
        return list(zip(*(map(_frozen, column) for column in columns), strict=True))

    @property
    @abstractmethod
    def shown_columns(self) -> list[str]:
        """Raw columns that a model is shown."""

    @abstractmethod
    def encode(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """Features, one row a row: input_ids, attention_mask, token_type_ids (if the tokenizer has
        them) and labels. Raw columns are dropped. In memory only: no cache files."""

    def meet(self, model: PreTrainedModel) -> None:
        """Look at the host, before anything is encoded for it. Raises UserError for one that cannot
        do this task."""

    def check_routed(self, model: PreTrainedModel) -> None:
        """Raise UserError for routers that this task must not have."""

    def encode_train(self, dataset: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
        """Features to learn from, where they differ from those to be judged by."""
        return self.encode(dataset, tokenizer)

    def run(
        self, model: PreTrainedModel, rows: Sequence[Row], collate: Collate, batch_tokens: int
    ) -> BulkResult:
        """Answers to encoded rows, in their order: logits, or what was written."""
        return run_bulk(model, rows, collate, batch_tokens, self.generation)

    def joined(self, rows: datasets.Dataset, result: BulkResult, count: int) -> BulkResult:
        """Answers to ``count`` raw rows from those to encoded ones, where a raw row is several."""
        return result

    @property
    def fixed(self) -> bool:
        """Are training rows the same in every epoch."""
        return True

    def vary(self, row: dict[str, Any], epoch: int) -> dict[str, Any]:
        """An encoded training row as it is seen in an epoch of several tasks."""
        return row

    @abstractmethod
    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Encoded rows -> a batch of tensors padded to its longest; other columns are dropped."""

    @abstractmethod
    def references(self, dataset: datasets.Dataset) -> Any:
        """Gold label ids of a raw labelled dataset, in the form that `predictions` returns."""

    @abstractmethod
    def predictions(self, logits: Any, labels: Any = None) -> Any:
        """Label ids of a batch. `labels` is the batch's own labels column (or any mask like it)."""

    @abstractmethod
    def counts(self, predictions: Any, references: Any) -> np.ndarray:
        """(examples, k) numbers whose sum over examples is all that `score` needs."""

    @abstractmethod
    def score(self, total: np.ndarray) -> float:
        """The headline metric, 0 to 1, from a sum of rows of `counts`: (k,)."""

    def told(self, total: np.ndarray) -> str:
        """The score in words, from a sum of rows of `counts`."""
        return f"{self.score(total):.4f}"

    @abstractmethod
    def report(self, predictions: Any, references: Any) -> dict[str, Any]:
        """Every metric of the task, ready for JSON."""

    @property
    def generation(self) -> dict[str, Any] | None:
        """Options of ``generate``; None for tasks that are answered by logits."""
        return None

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """Probabilities of the labels from logits (..., C); None where a task has none."""
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def logits_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Logits that ``probabilities`` would make these of."""
        return np.log(probabilities.clip(1e-12))

    @abstractmethod
    def describe(
        self, record: dict[str, Any], prediction: Any, probabilities: Any = None
    ) -> dict[str, Any]:
        """One prediction with label names, ready for JSON; `record` is the raw row."""


class Collator:
    """Keeps the columns a model takes, pads them with the tokenizer's own collator."""

    def __init__(self, tokenizer: Any, pad: Callable[[list[dict[str, Any]]], Any]):
        if tokenizer.pad_token is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no padding token; "
                "set `pad_token` in the model's tokenizer_config.json"
            )
        self.keep = {*tokenizer.model_input_names, "labels"}
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.pad([{k: v for k, v in row.items() if k in self.keep} for row in rows])


def map_batches(
    dataset: datasets.Dataset, function: Callable[[dict[str, list[Any]]], dict[str, Any]]
) -> datasets.Dataset:
    """`dataset.map` in memory, no progress bar; only the columns that `function` returns stay."""
    with no_progress():
        return dataset.map(
            function,
            batched=True,
            remove_columns=dataset.column_names,
            keep_in_memory=True,
            load_from_cache_file=False,
            # a fingerprint of our own: the default one pickles the tokenizer to hash it
            new_fingerprint=uuid.uuid4().hex[:16],
        )


def check_tokenizer(tokenizer: Any, max_length: int) -> None:
    """Raise UserError for a tokenizer that cannot report words, or too great a max_length."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no fast version; one is needed"
        )
    if max_length > tokenizer.model_max_length:
        raise UserError(
            f"`max_length: {max_length}` is more than the model takes; "
            f"at most {tokenizer.model_max_length}"
        )


def as_array(values: Any) -> np.ndarray:
    """A numpy array of a list, or of a tensor on any device (bfloat16, unknown to numpy, too)."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Nested dicts with numpy numbers as plain Python ones, for JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
