"""What ran for each token of one real text: the material of the heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from turnout.cost import nested
from turnout.execute.batches import Collate, Row, inputs_of
from turnout.measure.arms import Entry
from turnout.measure.results import Heatmap
from turnout.route import ADDED

FITS = (8, 32)  # tokens that can be read on one page


def choose(lengths: np.ndarray, units: np.ndarray) -> int:
    """Place of a text that fits a page and ran as many layers as the mean text, the first such."""
    fits = np.flatnonzero((lengths >= FITS[0]) & (lengths <= FITS[1]))
    places = fits if len(fits) else np.array([int(np.argmin(lengths))])
    return int(places[np.argmin(np.abs(units[places] - units.mean()))])


@torch.inference_mode()
def heatmap(entry: Entry, row: Row, collate: Collate, tokenizer: Any) -> Heatmap:
    """One row through one routed arm. Sequence-level routes are the same for every token.

    Of an encoder-decoder, the stack of the first routed site is shown.
    """
    routing: Any = entry.model.turnout
    inputs = inputs_of(entry.model, [row], collate)
    with routing.at(entry.budget):
        entry.model(**inputs)
    trace = routing.current_flow().trace
    stack = routing.sites[0].stack
    written = inputs.get("decoder_input_ids") if stack == "decoder" else None
    ids = list(row["input_ids"]) if written is None else written[0].tolist()
    depth = routing.sites[0].depth
    ran = np.ones((depth, len(ids)))
    for route in nested(trace):
        if route.site.stack == stack and route.site.kind not in ADDED:
            share_BT = route.share_BT.expand(1, len(ids))
            skipped_T = 1 - share_BT[0].double().cpu().numpy()
            ran[route.site.layer] -= skipped_T * routing.part_of_block(route.site)
    return Heatmap(
        text=tokenizer.decode(ids, skip_special_tokens=True),
        tokens=[_shown(token) for token in tokenizer.convert_ids_to_tokens(ids)],
        layers=[f"{stack} {layer + 1}" for layer in range(depth)],
        ran=ran.clip(0.0, 1.0).tolist(),
        arm=entry.name,
    )


def _shown(token: str) -> str:
    """A token without the marks that byte-pair and unigram tokenizers put for a space."""
    return token.replace("Ġ", "").replace("▁", "") or token
