"""The rows of several tasks, as the trainer of one model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from turnout.double.answers import score
from turnout.double.config import TasksTrainConfig
from turnout.double.mixing import Batches, Sampling
from turnout.errors import UserError
from turnout.hosts.tasks_model import TasksModel
from turnout.train.data import Data, listed

Item = tuple[int, list[dict[str, Any]]]


@contextmanager
def asking(model: TasksModel, task: str) -> Iterator[None]:
    """Passes inside that do not say which task they want this one."""
    before, model.task = model.task, task
    try:
        yield
    finally:
        model.task = before


@dataclass(frozen=True, eq=False)
class TasksData:
    """each: encoded rows by task. batch_size and the rest: see ``Batches``. tasks: of the model, in
    its order; None = those of ``each``. states: by task, what a frozen backbone has made of its
    training rows (see double/frozen.py). Raises UserError for tasks with different tokenizers."""

    each: Mapping[str, Data]
    batch_size: int
    sampling: Sampling = "proportional"
    temperature: float = 2.0
    seed: int = 0
    tasks: Sequence[str] | None = None
    states: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        each: Mapping[str, Data],
        config: TasksTrainConfig,
        tasks: Sequence[str] | None = None,
    ) -> TasksData:
        """As a config says."""
        how = (config.batch_size, config.sampling, config.temperature, config.seed)
        return cls(each, *how, tasks)

    def __post_init__(self) -> None:
        vocabularies = {name: data.tokenizer.get_vocab() for name, data in self.each.items()}
        (first, words), *others = vocabularies.items()
        for name, other in others:
            if other != words:
                raise UserError(
                    f"tasks {first!r} and {name!r} have tokenizers of other words: one backbone "
                    "reads with one tokenizer"
                )

    references = True  # validated by the tasks' scores, not by the loss
    teacher = None

    @property
    def tokenizer(self) -> Any:
        """The one of all tasks."""
        return next(iter(self.each.values())).tokenizer

    def rows(self) -> Batches:
        """Training batches."""
        return Batches(
            {name: self._rows_of(name) for name in self.each},
            self.batch_size,
            sampling=self.sampling,
            temperature=self.temperature,
            seed=self.seed,
            together={name: data.task.together for name, data in self.each.items()},
            vary={name: data.task.vary for name, data in self.each.items()},
        )

    def _rows_of(self, name: str) -> list[dict[str, Any]]:
        rows, states = listed(self.each[name].train), self.states.get(name)
        if states is None:
            return rows
        return [{**row, "states": state} for row, state in zip(rows, states, strict=True)]

    @property
    def validation(self) -> Batches:
        """Validation batches, every row once."""
        rows = {name: listed(data.validation) for name, data in self.each.items()}
        return Batches(rows, 2 * self.batch_size, shuffled=False)

    def collate(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """One batch of one task as tensors, with ``task_ids``."""
        ((place, rows),) = items
        states = [row.pop("states") for row in rows if "states" in row]
        batch = list(self.each.values())[place].collate(rows)
        if states:
            batch["states"] = pad_sequence(states, batch_first=True)
        return {**batch, "task_ids": torch.full((len(rows),), self._number(place))}

    def _number(self, place: int) -> int:
        """What the model calls the task at a place of ours."""
        return place if self.tasks is None else self.tasks.index(list(self.each)[place])

    def usual_batch(self, size: int) -> dict[str, torch.Tensor]:
        """A labelled batch of middling length, of the task with the most rows. size: of our
        batches."""
        names = list(self.each)
        largest = max(names, key=lambda name: len(self.each[name].train))
        batch = self.each[largest].usual_batch(size * self.batch_size)
        rows = len(batch["input_ids"])
        return {**batch, "task_ids": torch.full((rows,), self._number(names.index(largest)))}

    def scores(self, model: TasksModel) -> dict[str, float]:
        """Each task's headline on its validation rows."""
        return {
            name: score(model, name, data.task, data.validation, data.references, data.tokenizer)
            for name, data in self.each.items()
        }

    def score(self, model: Any) -> float:
        """The mean of the headlines."""
        found = self.scores(model)
        return sum(found.values()) / len(found)

    def judged(self, model: Any) -> float:
        """``score`` in the middle of a training."""
        return self.score(model)
