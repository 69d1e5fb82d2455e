"""The order in which the rows of an epoch are seen."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from turnout.train.config import TrainConfig


class LengthOrder(Sampler[int]):
    """The order of the rows of an epoch: a function of the seed and the epoch alone, so a training
    that goes on in its second epoch sees the order that it would have seen.

    step: rows to an optimizer step. grouped: the rows of a step are of like length; if not, they
    are drawn at random and only sorted inside of the step, so that its micro-batches hold little
    padding.
    """

    def __init__(self, lengths: list[int], step: int, seed: int, grouped: bool) -> None:
        self.lengths, self.step, self.seed, self.grouped = lengths, step, seed, grouped
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.grouped:
            yield from get_length_grouped_indices(self.lengths, self.step, generator=generator)
            return
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.step):
            rows = order[start : start + self.step]
            yield from sorted(rows, key=self.lengths.__getitem__, reverse=True)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch


def grouped_steps(config: TrainConfig, rows: datasets.Dataset) -> bool:
    """Whether a step takes rows of like length: as the config says, or unless words are labelled
    (then a step of short sentences would count each of its words for more)."""
    if config.group_by_length is not None:
        return config.group_by_length
    return not isinstance(rows[0].get("labels"), list)
