"""Batches of several tasks, one task a batch: how often each comes, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset, Sampler

from turnout.errors import UserError

Sampling = Literal["proportional", "temperature", "round-robin"]
Vary = Callable[[dict[str, Any], int], dict[str, Any]]
POOL = 32  # batches whose rows are sorted by length together


def shares(sizes: Sequence[int], sampling: Sampling, temperature: float) -> np.ndarray:
    """The part of the batches that each task gets; they add up to 1.

    ``proportional`` to its rows; ``temperature`` to the rows to the power 1 / temperature, so that
    small tasks come more often (T5, Raffel et al. 2020, arXiv 1910.10683, section 3.5.2);
    ``round-robin`` all alike.
    """
    power = {"proportional": 1.0, "temperature": 1.0 / temperature, "round-robin": 0.0}[sampling]
    weight = np.asarray(sizes, dtype=np.float64) ** power
    return weight / weight.sum()


class Batches(Dataset[tuple[int, list[dict[str, Any]]]]):
    """Batches as items: (place of the task, its rows). Which ones there are is a function of the
    seed and the epoch alone, so a training that goes on sees what it would have seen.

    rows: encoded, by task. together: by task, how many of its rows stay side by side; 1 where it
    says nothing. vary: by task, what a row is in an epoch. size: rows of a batch. shuffled: False
    takes every row once, in order. An epoch has as many batches as all rows fill. Raises UserError
    for a task without rows.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[Mapping[str, Any]]],
        size: int,
        *,
        sampling: Sampling = "proportional",
        temperature: float = 2.0,
        seed: int = 0,
        shuffled: bool = True,
        together: Mapping[str, int] | None = None,
        vary: Mapping[str, Vary] | None = None,
    ) -> None:
        empty = [name for name, each in rows.items() if not len(each)]
        if empty:
            raise UserError(f"task {empty[0]!r} has no rows")
        self.rows, self.size, self.seed, self.shuffled = list(rows.values()), size, seed, shuffled
        self.sizes = [len(each) for each in self.rows]
        self.together = [(together or {}).get(name, 1) for name in rows]
        self.vary = [(vary or {}).get(name) for name in rows]
        self.share = shares(self.sizes, sampling, temperature)
        self.lengths = [np.array([len(row["input_ids"]) for row in each]) for each in self.rows]
        self.arrange(0)

    def arrange(self, epoch: int) -> None:
        """Lay out the batches of an epoch."""
        self.epoch = epoch
        counts = [-(-size // self.size) for size in self.sizes]
        if not self.shuffled:
            self._plan = [
                (task, np.arange(at * self.size, min((at + 1) * self.size, self.sizes[task])))
                for task, count in enumerate(counts)
                for at in range(count)
            ]
            return
        generator = np.random.default_rng([self.seed, epoch])
        counts = _whole(self.share * sum(counts))
        plan = [
            (task, batch)
            for task, count in enumerate(counts)
            for batch in self._drawn(task, int(count), generator)
        ]
        self._plan = [plan[place] for place in generator.permutation(len(plan))]

    def _drawn(self, task: int, count: int, generator: np.random.Generator) -> list[np.ndarray]:
        """So many batches of a task: its rows in random order, again and again; rows of like length
        together, to hold little padding."""
        group = self.together[task]
        size = max(1, self.size // group)
        need, parts = count * size, list[np.ndarray]()
        while sum(map(len, parts)) < need:
            parts.append(generator.permutation(self.sizes[task] // group))
        if not parts:
            return []
        order = np.concatenate(parts)[:need]
        batches = list[np.ndarray]()
        for start in range(0, need, POOL * size):
            pool = order[start : start + POOL * size]
            pool = pool[np.argsort(self.lengths[task][pool * group], kind="stable")]
            batches += np.split(pool, range(size, len(pool), size))
        return [(batch[:, None] * group + np.arange(group)).flatten() for batch in batches]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, place: int) -> tuple[int, list[dict[str, Any]]]:
        task, at = self._plan[place]
        batch = [dict(self.rows[task][int(row)]) for row in at]
        vary = self.vary[task]
        return task, batch if vary is None else [vary(row, self.epoch) for row in batch]


class BatchOrder(Sampler[int]):
    """Goes through ``Batches`` as they lie; lays them out anew each epoch."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.batches)))

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.batches.arrange(epoch)


def _whole(parts: np.ndarray) -> np.ndarray:
    """Numbers as whole ones with the same sum (largest remainders), none of them 0."""
    floor = np.maximum(np.floor(parts), 1)
    for place in np.argsort(-(parts - floor), kind="stable")[
        : max(0, round(parts.sum() - floor.sum()))
    ]:
        floor[place] += 1
    return floor.astype(int)
