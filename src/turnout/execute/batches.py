"""Bulk work batch by batch: rows of like length together, through the model's own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from turnout.cost import added_flops, nested, trace_dense_flops, trace_flops
from turnout.execute.routing import Routing, forward_names
from turnout.route import ADDED, UnitCost

Row = Mapping[str, Any]
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
ROUGH = 512
# A pack of this part of a full group runs at full speed; joining more would only add padding.
FILL = 0.25
# A group that is that full takes no row shorter than this part of its longest.
TIGHT = 0.8


class Meter:
    """Counts what ran.

    units: blocks of each example. sites: examples by site key, parts of an example included.
    spent, whole: routed work in FLOPs, and what it would be if everything ran. added: the part of
    whole that the host does not have (adapters).
    """

    def __init__(self, examples: int) -> None:
        self.units = np.zeros(examples)
        self.sites: dict[str, float] = {}
        self.spent = self.whole = self.added = 0.0

    def ran(self, key: str, examples: float) -> None:
        """So many examples ran at a site."""
        self.sites[key] = self.sites.get(key, 0.0) + examples

    def count(self, places: np.ndarray, routing: Routing) -> None:
        """Count the last pass of a model, which was over the examples at these places."""
        flow = routing.current_flow()
        units = np.full(len(places), float(len(routing.block_costs)))
        for route in nested(flow.trace):
            active = route.share_BT
            if active.shape[1] > 1:
                valid = flow.trace.valid_BT(route.site.stack).float()
                active = (active * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
            share = active[:, 0].double().cpu().numpy()
            self.ran(route.site.key, float(share.sum()))
            if route.site.kind not in ADDED:  # no part of the host's blocks
                units -= (1 - share) * routing.part_of_block(route.site)
        self.units[places] = units
        if not flow.trace:  # noise alone: all of the host ran
            return
        self.spent += float(trace_flops(flow.trace))
        self.whole += float(trace_dense_flops(flow.trace))
        self.added += added_flops(flow.trace)


def whole_flops(cost: UnitCost, lengths: np.ndarray) -> float:
    """Work of examples of these lengths that run whole, in FLOPs."""
    tokens = lengths.astype(np.float64)
    return float((cost.row * tokens + cost.pair * tokens**2).sum())


def lengths_of(rows: Sequence[Row]) -> np.ndarray:
    """Real tokens of each row. Rows without token ids (sound, images) count one for each
    ROUGH numbers: good enough to group them and to size batches."""
    return np.array([_length(row) for row in rows], dtype=np.int64)


def _length(row: Row) -> int:
    if "input_ids" not in row:
        return -(-np.asarray(next(iter(row.values()))).size // ROUGH)
    mask = row.get("attention_mask")
    return len(row["input_ids"]) if mask is None else int(sum(mask))


def groups_by_length(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Places in groups of like length, longest first, at most ``batch_tokens`` with padding."""
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    at = 0
    while at < len(order):
        longest = max(1, int(falling[at]))
        most, enough = batch_tokens // longest, int(FILL * batch_tokens) // longest
        alike = int((falling[at:] >= TIGHT * longest).sum())
        size = max(1, min(most, max(enough, alike)))
        yield order[at : at + size]
        at += size


def inputs_of(model: Any, rows: Sequence[Row], collate: Collate) -> dict[str, Any]:
    """What a model is called with for some rows, on its device.

    Labels stay out, but a decoder's inputs are read off them where there are none; a cache of keys
    and values, which one pass does not need, is turned off.
    """
    return labelled_inputs_of(model, rows, collate)[0]


def labelled_inputs_of(
    model: Any, rows: Sequence[Row], collate: Collate
) -> tuple[dict[str, Any], Tensor | None]:
    """``inputs_of`` some rows, and their labels, on the model's device; None = they have none."""
    batch = collate([dict(row) for row in rows])
    labels = batch.pop("labels", None)
    if labels is not None and labels.ndim == 2 and model.config.is_encoder_decoder:
        shifted = model.prepare_decoder_input_ids_from_labels
        batch.setdefault("decoder_input_ids", shifted(labels=labels))
    inputs: dict[str, Any] = {name: value.to(model.device) for name, value in batch.items()}
    found = None if labels is None else labels.to(model.device)
    return {**inputs, **uncached(model)}, found


def uncached(model: Any) -> dict[str, Any]:
    """The argument that turns a host's cache off, where it has one: one pass needs none, and texts
    that are packed into one row are kept apart only without."""
    return {"use_cache": False} if "use_cache" in forward_names(type(model)) else {}


def unread(model: Any) -> dict[str, Any]:
    """The argument that spares a language model the logits of all tokens but the last, where it has
    one, for passes whose answers nobody reads."""
    return {"logits_to_keep": 1} if "logits_to_keep" in forward_names(type(model)) else {}


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
        logits: list[np.ndarray | None] | None,
    ) -> None:
        self.model, self.rows, self.collate = model, rows, collate
        self.places, self.lengths = places, lengths[places]
        self.batch_tokens, self.meter, self.logits = batch_tokens, meter, logits
        self.device = model.device

    def run(self) -> None:
        """Fill in the logits of the window."""
        self.routing: Any = getattr(self.model, "turnout", None)
        spared = unread(self.model) if self.logits is None else {}
        for group in groups_by_length(self.lengths, self.batch_tokens):
            inputs = self.batch(group)
            outputs = self.model(**inputs, **spared)
            if self.logits is not None:  # those of several tasks stand in a dict, and only count
                self.answer(group, outputs["logits"], self._token_mask(inputs, outputs["logits"]))
            if self.routing is not None:
                self.meter.count(self.places[group], self.routing)

    def batch(self, group: np.ndarray) -> dict[str, Any]:
        """The model's inputs for a group."""
        return inputs_of(self.model, [self.rows[i] for i in self.places[group]], self.collate)

    def answer(self, group: np.ndarray, logits: Tensor, mask_BT: Tensor | None = None) -> None:
        """Store the logits of a group; mask_BT: of the tokens whose logits count, None = all."""
        if self.logits is None:
            return
        masks = None if mask_BT is None or logits.ndim < 3 else mask_BT.bool().cpu().numpy()
        for place, (i, row) in enumerate(zip(group, logits.float().cpu().numpy(), strict=True)):
            self.logits[self.places[i]] = row if masks is None else row[masks[place]]

    def _token_mask(self, inputs: dict[str, Any], logits: Tensor) -> Tensor | None:
        """The mask of the inputs where the logits stand for the same tokens."""
        mask_BT = inputs.get("attention_mask")
        same = mask_BT is not None and mask_BT.shape == logits.shape[:2]
        return mask_BT if same and not self.model.config.is_encoder_decoder else None
