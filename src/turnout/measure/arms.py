"""The models that are measured side by side, and one run of each over the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from turnout.execute.pool import BulkResult, Collate, Row, predict_bulk
from turnout.install import install
from turnout.measure.results import Family

SEED = 0


@dataclass(frozen=True, eq=False)
class Entry:
    """One arm before it is measured.

    budget: what was asked for, as the report shows it; dial: what the model's dial is set to.
    router: which of several routed models it is; None = there is one.
    """

    name: str
    family: Family
    model: PreTrainedModel
    budget: float | None = None
    dial: float | None = None
    router: str | None = None

    def run(self, rows: Sequence[Row], collate: Collate, batch_tokens: int) -> BulkResult:
        """All rows, in the same groups of like length for every arm."""
        routing: Any = getattr(self.model, "turnout", None)
        with nullcontext() if self.dial is None else routing.at(self.dial):
            return predict_bulk(self.model, rows, collate, batch_tokens)


def plain_entries(
    dense: PreTrainedModel,
    routed: PreTrainedModel | Mapping[str, PreTrainedModel],
    budgets: Sequence[float],
    static: Mapping[str, PreTrainedModel],
) -> list[Entry]:
    """The dense host, each routed model at each budget, and the cut models."""
    many = isinstance(routed, Mapping)
    models = routed if isinstance(routed, Mapping) else {"routed": routed}
    return [
        Entry("dense", "dense", dense),
        *(
            Entry(f"{name}-{_label(b)}", "routed", model, b, b, name if many else None)
            for name, model in models.items()
            for b in sorted(set(budgets))[::-1]
        ),
        *(Entry(name, "static", model) for name, model in static.items()),
    ]


def random_entries(dense: PreTrainedModel, spent: Mapping[float, float]) -> list[Entry]:
    """Random skipping of layers in the dense host, once for each routed budget.

    spent: budget -> share of the host's work that the routed model really spent; that is what
    random skipping gets, so both do the same work. It decides per sequence, with a fixed seed.
    """
    sharing: dict[int, Any] = {id(p): p for p in dense.parameters()}
    model = install(deepcopy(dense, sharing), [{"kind": "random-skip", "rate": 0.0}]).eval()
    routing: Any = model.turnout
    routing.seed = SEED
    return [
        Entry(f"random-{_label(budget)}", "random", model, budget, min(1.0, share))
        for budget, share in spent.items()
    ]


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert a host in place; its routers keep full precision."""
    for name, child in model.named_children():
        if name != "turnout":
            child.to(dtype)
    return model


def _label(budget: float) -> str:
    """0.35 -> "35", 0.125 -> "12.5"."""
    return f"{budget * 100:g}"
