"""Feed-forward networks of which a quarter runs: gates over experts, experts drawn at random, and
neurons that are pruned for good; and the time that each takes of the dense one's."""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from typing import Any

import torch
from stopwatch import Stopwatch
from torch import Tensor, nn

import turnout
from turnout.hosts.attach import blocks_of, find_family
from turnout.units.experts import neuron_importance, reorder

SHARE, EXPERTS = 0.25, 8
GATE = {
    "kind": "gate",
    "site": "expert",
    "granularity": "token",
    "keep": "top-k",
    "shape": "mlp",
    "experts": EXPERTS,
    "split": "coactivation",
    "open": 0.0,
    "top": int(SHARE * EXPERTS),
}
CHANCE = {**GATE, "kind": "random-skip", "rate": 1 - SHARE}
CHANCE = {k: v for k, v in CHANCE.items() if k not in ("keep", "shape", "open", "top")}
ARMS = ("experts", "random", "pruned")
STATES = ("as it is", "trained")


def prune(model: Any, batches_: Any | None) -> None:
    """Keep the most important quarter of the neurons of every network, in place; without batches
    the first ones, for weights that are loaded afterwards."""
    importance = None
    if batches_ is not None:
        turnout.install(model, [{**GATE, "split": "random"}])
        importance = neuron_importance(model, batches_)
        turnout.uninstall(model)
    for view in blocks_of(model, find_family(model)):
        into, (_, out) = view.neurons()
        keep = int(out.in_features * SHARE)
        if importance is not None:
            order = importance[view.place].argsort(descending=True)
            reorder(view, order)
        for _, module in into:
            _cut(module, keep, 0)
        _cut(out, keep, 1)


def _cut(layer: nn.Linear, keep: int, dim: int) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().narrow(dim, 0, keep).clone())
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[:keep].clone())
    layer.in_features, layer.out_features = reversed(layer.weight.shape)


class Timed:
    """A model and the time of its blocks outside of their attention: the feed-forward networks,
    with choosing, norms and sums."""

    def __init__(self, model: Any) -> None:
        self.model = model
        blocks = [view.module for view in blocks_of(model, find_family(model))]
        attention = [getattr(block, "self_attn", None) or block.attention for block in blocks]
        self.blocks = Stopwatch(blocks, blocks)
        self.attention = Stopwatch(attention, attention)

    @torch.inference_mode()
    def run(self, inputs: dict[str, Tensor]) -> tuple[float, float]:
        """Seconds of the networks, and of the whole pass."""
        self.blocks.seconds = self.attention.seconds = 0.0
        start = time.perf_counter()
        self.model(**inputs)
        spent = time.perf_counter() - start
        return self.blocks.seconds - self.attention.seconds, spent


def times(dense: Any, arms: dict[str, Any], inputs: dict[str, Tensor], rounds: int) -> dict:
    """Median ratios to the dense time, of the networks and of the whole pass."""
    host = Timed(deepcopy(dense))
    timed = {name: Timed(model) for name, model in arms.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for round_ in range(rounds + 2):
        for name, arm in timed.items():
            whole, part = host.run(inputs), arm.run(inputs)
            if round_ > 1:
                found[name].append((part[0] / whole[0], part[1] / whole[1]))
    return {
        name: {
            "ffn_time": statistics.median(a for a, _ in pairs),
            "ffn_time_low": min(a for a, _ in pairs),
            "ffn_time_high": max(a for a, _ in pairs),
            "whole_time": statistics.median(b for _, b in pairs),
        }
        for name, pairs in found.items()
    }
