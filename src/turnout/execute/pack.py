"""Inputs of like length that move through the model together, and how they are packed anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Memory = dict[tuple[str, str], Tensor]


@dataclass(eq=False)
class Pack:
    """Some inputs at one depth, with all that is known of them. Real tokens stand on the left.

    rows: places of the inputs. lengths: their real tokens. hidden_BTD: states, padded to the
    longest. ids_BT: token ids, padded alike. keys_B: what random routers key on. memory: what
    routers remembered, batch first.
    """

    rows: np.ndarray
    lengths: np.ndarray
    hidden_BTD: Tensor
    ids_BT: Tensor
    keys_B: Tensor
    memory: Memory

    @property
    def longest(self) -> int:
        """T, the length of the longest input."""
        return self.hidden_BTD.shape[1]

    @cached_property
    def mask_BT(self) -> Tensor:
        """Which tokens are real."""
        device = self.hidden_BTD.device
        place_T = torch.arange(self.longest, device=device)
        return place_T[None, :] < torch.from_numpy(self.lengths).to(device)[:, None]

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What the host's forward pass is given, and what routers may look at."""
        return {"input_ids": self.ids_BT, "attention_mask": self.mask_BT.long()}

    @property
    def padded(self) -> bool:
        """Is any token padding."""
        return int(self.lengths.min()) < self.longest


Part = tuple[Pack, np.ndarray]


def join(parts: Sequence[Part], token_memory: frozenset[str]) -> Pack:
    """One pack of the chosen rows of several; a pack that is taken whole is handed on as it is.

    parts: packs and places in them, at least one place each. token_memory: names in the memory
    whose second dimension is T.
    """
    first, chosen = parts[0]
    if len(parts) == 1 and len(chosen) == len(first.rows):
        return first
    lengths = np.concatenate([pack.lengths[at] for pack, at in parts])
    longest = int(lengths.max())
    device = first.hidden_BTD.device
    places = [torch.from_numpy(at).to(device) for _, at in parts]
    memory = {}
    for key in first.memory:
        width = longest if key[1] in token_memory else None
        memory[key] = _take([pack.memory[key] for pack, _ in parts], places, width)
    return Pack(
        rows=np.concatenate([pack.rows[at] for pack, at in parts]),
        lengths=lengths,
        hidden_BTD=_take([pack.hidden_BTD for pack, _ in parts], places, longest),
        ids_BT=_take([pack.ids_BT for pack, _ in parts], places, longest),
        keys_B=_take([pack.keys_B for pack, _ in parts], places, None),
        memory=memory,
    )


def _take(values: Sequence[Tensor], places: Sequence[Tensor], width: int | None) -> Tensor:
    """Rows of several tensors in one; width: cut or pad the second dimension to it."""
    if width is not None:
        values = [value[:, :width] for value in values]
    if len(values) == 1:
        return values[0].index_select(0, places[0])
    chosen = [value.index_select(0, at) for value, at in zip(values, places, strict=True)]
    if width is None:
        return torch.cat(chosen)
    total = sum(len(value) for value in chosen)
    joined = chosen[0].new_zeros(total, width, *chosen[0].shape[2:])
    start = 0
    for value in chosen:
        joined[start : start + len(value), : value.shape[1]] = value
        start += len(value)
    return joined


class Pool:
    """Collects rows, longest first, until they fill a pack of ``fill`` tokens.

    What fills a pack by itself is passed on alone, so full packs are never mixed anew and rows
    of unlike length are joined only where there are too few of either.
    """

    def __init__(self, fill: int, token_memory: frozenset[str]) -> None:
        self.fill, self.token_memory = fill, token_memory
        self._parts: list[Part] = []
        self._rows = self._longest = 0

    def add(self, pack: Pack, chosen_B: np.ndarray) -> list[Pack]:
        """Take rows in; returns the packs that are full by now."""
        at = np.flatnonzero(chosen_B)
        if not len(at):
            return []
        own = int(pack.lengths[at].max())
        longest = max(self._longest, own)
        full = []
        if self._parts and (self._rows + len(at)) * longest > self.fill:
            full, longest = self.flush(), own
        self._parts.append((pack, at))
        self._rows, self._longest = self._rows + len(at), longest
        return full + self.flush() if self._rows * longest >= self.fill else full

    def flush(self) -> list[Pack]:
        """What is left, in one pack."""
        if not self._parts:
            return []
        pack = join(self._parts, self.token_memory)
        self._parts, self._rows, self._longest = [], 0, 0
        return [pack]
