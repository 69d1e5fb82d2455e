"""Bulk work batch by batch: rows of like length together, through the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from turnout.flow import Flow

Row = Mapping[str, Any]
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class Meter:
    """Counts what ran."""

    def __init__(self, examples: int) -> None:
        self.units = np.zeros(examples)
        self.sites: dict[str, float] = {}
        self.tokens: dict[str, float] = {}

    def ran(self, key: str, shares: np.ndarray, lengths: np.ndarray) -> None:
        self.sites[key] = self.sites.get(key, 0.0) + float(shares.sum())
        self.tokens[key] = self.tokens.get(key, 0.0) + float((shares * lengths).sum())


def groups_by_length(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Places in groups of like length, longest first, at most ``batch_tokens`` with padding."""
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[at]])))
        yield order[at : at + size]
        at += size


class Batches:
    """One window of inputs, batch by batch through the model's own forward."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        lengths: np.ndarray,
        places: np.ndarray,
        collate: Collate,
        batch_tokens: int,
        meter: Meter,
        logits: list[np.ndarray | None],
    ) -> None:
        self.model, self.rows, self.collate = model, rows, collate
        self.places, self.lengths = places, lengths[places]
        self.batch_tokens, self.meter, self.logits = batch_tokens, meter, logits
        self.device = model.device

    def run(self) -> None:
        """Fill in the logits of the window."""
        self.routing: Any = getattr(self.model, "turnout", None)
        for group in groups_by_length(self.lengths, self.batch_tokens):
            inputs = self.batch(group)
            outputs = self.model(**inputs)
            self.answer(group, outputs["logits"], inputs.get("attention_mask"))
            if self.routing is not None:
                self._count(group, self.routing.current_flow())

    def batch(self, group: np.ndarray) -> dict[str, Tensor]:
        """The collated inputs of a group, without labels."""
        batch = self.collate([dict(self.rows[i]) for i in self.places[group]])
        batch.pop("labels", None)
        return {name: value.to(self.device) for name, value in batch.items()}

    def answer(self, group: np.ndarray, logits: Tensor, mask_BT: Tensor | None = None) -> None:
        """Store the logits of a group without padding, which is on the right without a mask."""
        masks = None if mask_BT is None else mask_BT.bool().cpu().numpy()
        for place, (i, row) in enumerate(zip(group, logits.float().cpu().numpy(), strict=True)):
            if row.ndim == 2:
                row = row[: self.lengths[i]] if masks is None else row[masks[place]]
            self.logits[self.places[i]] = row

    def _count(self, group: np.ndarray, flow: Flow) -> None:
        units = np.full(len(group), float(len(self.routing.block_costs)))
        for key, route in flow.trace.items():
            active = route.active_BT.float()
            if active.shape[1] > 1:
                valid = flow.trace.valid_BT(route.site.stack).float()
                active = (active * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
            share = active[:, 0].double().cpu().numpy()
            self.meter.ran(key, share, self.lengths[group])
            units -= (1 - share) * self.routing.part_of_block(route.site)
        self.meter.units[self.places[group]] = units
