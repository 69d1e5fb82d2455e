"""Use the units of a model alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from turnout.route import Route, Trace


def importance(routes: Iterable[Route], trace: Trace) -> Tensor:
    """Mean weight of each unit over real tokens, all sites one after the other, shape (sum U,)."""
    parts = []
    for route in routes:
        if route.weight_BTU.shape[1] == 1:
            parts.append(route.weight_BTU.mean((0, 1)))
            continue
        valid_BT1 = trace.valid_BT(route.site.stack)[:, :, None].to(route.weight_BTU.dtype)
        parts.append((route.weight_BTU * valid_BT1).sum((0, 1)) / valid_BT1.sum().clamp_min(1))
    return torch.cat(parts)


def balance(trace: Trace) -> Tensor:
    """Squared coefficient of variation of the units' importance (Shazeer et al. 2017,
    arXiv 1701.06538, eq. 6-7: their Importance(X) is our mean weight).

    Minimal (0) when every unit is used alike; scale-free, so it does not fight the budget. Units of
    one kind are compared with each other alone (a layer may be used more than an expert), and the
    kinds' values are averaged.
    """
    kinds: dict[str, list[Route]] = {}
    for route in trace.values():
        kinds.setdefault(route.site.kind, []).append(route)
    return torch.stack([_variation(importance(each, trace)) for each in kinds.values()]).mean()


def _variation(use: Tensor) -> Tensor:
    if use.numel() < 2:
        return use.sum() * 0.0
    return use.var(unbiased=False) / use.mean().clamp_min(1e-6) ** 2
