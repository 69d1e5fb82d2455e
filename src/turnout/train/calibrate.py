"""Turn a budget into thresholds: run data once a grid point, labelled or not; note the share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row, groups_by_length, inputs_of, lengths_of, unread
from turnout.execute.mode import evaluating
from turnout.execute.pool import predict_bulk
from turnout.execute.routing import Routing
from turnout.routers.base import Router
from turnout.train.saving import note_dial

PASSES = 11
BELOW_ONE = 0.999  # a budget of 1 means that thresholds and rates are not in use
MIXED = 4  # passes a grid point where other routers follow the budget without a score


def calibrate(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    batch_tokens: int = 4096,
    passes: int = PASSES,
) -> list[tuple[float, float]]:
    """Fill in the dial of every router that decides by a score, from encoded rows.

    The scores of one open pass give candidate thresholds (their quantiles); one real pass at a
    candidate gives the share of the routed work that it spends, so the effect of early decisions
    on later ones is in the table. Each further pass halves the widest gap in share. Routers whose
    scores mean the same get one threshold, so that they shed what training, where the budget counts
    FLOPs, found to pay least, at whichever site; others get theirs at the same quantile. Beside
    routers without a score, which take the budget as it is, a candidate is run again at the share
    that it spent, so that the table holds budgets at which all of them spend just that. Whatever
    stops it leaves the dial as it was. Returns (quantile, share) pairs by rising quantile. Labels
    are not read. Raises UserError for an unrouted model, no rows, or scores that are not finite.
    """
    routing: Any = getattr(model, "turnout", None)
    if not isinstance(routing, Routing):
        raise UserError("calibrate needs a routed model; call turnout.install(model, ...) first")
    if len(rows) == 0:
        raise UserError("calibrate needs at least one row of data")
    scored = [router for router in routing.all_routers() if router.scored]
    if not scored:
        note_dial(model)
        return []
    before = routing.budget
    with evaluating(model):
        scores = _open_scores(model, rows, collate, batch_tokens, scored)

    def spend(quantile: float) -> float:
        for router in scored:
            router.levels = [(0.5, float(np.quantile(scores[_meaning(router)], quantile)))]
        share = 0.5
        for _ in range(1 if len(scored) == len(routing.all_routers()) else MIXED):
            with routing.at(min(share, BELOW_ONE)):
                share = predict_bulk(model, rows, collate, batch_tokens, answers=False).share
        return share

    dials = [router.levels for router in scored]
    try:
        found = _grid(spend, passes)
    except BaseException:  # stopped halfway: the dial is as it was
        for router, levels in zip(scored, dials, strict=True):
            router.levels = levels
        raise
    finally:
        routing.budget = before
    for router in scored:
        values = scores[_meaning(router)]
        router.levels = _falling(
            [(share, float(np.quantile(values, quantile))) for quantile, share in found.items()]
        )
    note_dial(model)
    return sorted(found.items())


def _grid(spend: Callable[[float], float], passes: int) -> dict[float, float]:
    """The share that is spent, by quantile: each pass halves the widest gap in share."""
    found = {1.0: spend(1.0)}
    for _ in range(passes - 1):
        edges = [0.0, *sorted(found)]
        shares = [1.0, *(found[quantile] for quantile in edges[1:])]
        gaps = [high - low for high, low in itertools.pairwise(shares)]
        widest = int(np.argmax(gaps))
        middle = (edges[widest] + edges[widest + 1]) / 2
        found[middle] = spend(middle)
    return found


@torch.inference_mode()
def _open_scores(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    batch_tokens: int,
    scored: Sequence[Router],
) -> dict[str, np.ndarray]:
    """All scores in a pass where everything runs, by what they mean."""
    routing: Any = model.turnout
    parts: dict[str, list[np.ndarray]] = {_meaning(router): [] for router in scored}
    with routing.at(1.0):
        for group in groups_by_length(lengths_of(rows), batch_tokens):
            inputs = inputs_of(model, [rows[i] for i in group], collate)
            model(**inputs, **unread(model))
            trace = routing.current_flow().trace
            for router in scored:
                for site in router.sites:
                    score_BTU = trace[site.key].score_BTU
                    assert score_BTU is not None
                    if score_BTU.shape[1] > 1:
                        score_BTU = score_BTU[trace.valid_BT(site.stack)]
                    parts[_meaning(router)].append(score_BTU.flatten().float().cpu().numpy())
    scores = {meaning: np.concatenate(part) for meaning, part in parts.items()}
    for meaning, values in scores.items():
        if not np.isfinite(values).all():
            raise UserError(f"router {meaning!r} gave scores that are not finite")
    return scores


def _meaning(router: Router) -> str:
    """What a router's scores mean: its kind, and the rule that they are made for."""
    config = router.config
    rules = (getattr(config, name, None) for name in ("keep", "criterion"))
    return " ".join([config.kind, *(str(rule) for rule in rules if rule is not None)])


def _falling(table: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The table by falling share; where shares tie, the lowest threshold stays."""
    kept: list[tuple[float, float]] = []
    for share, level in sorted(table, key=lambda pair: (-pair[0], pair[1])):
        if not kept or share < kept[-1][0]:
            kept.append((share, level))
    return kept
