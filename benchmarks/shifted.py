"""A policy that meets other topics than it learned on, and feedback that is negated."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from common import Row
from datasets_here import AG_LABELS
from frontier_claim import WORK, named
from rewarded import learn, rewards, settings
from trained import Study, dense_host
from transformers import set_seed

import turnout
from turnout.execute.batches import inputs_of
from turnout.train.data import listed
from turnout.train.online import OnlinePolicy
from turnout.train.trusted import trusted_reward

BEFORE, AFTER = AG_LABELS[1:2], (AG_LABELS[0], *AG_LABELS[2:])  # the easiest, then the rest
STREAM = 2000


def feedback(
    model: Any, online: OnlinePolicy, rows: Sequence[Any], study: Study, sign: float, size: int
) -> None:
    """A stream of examples and their rewards, a batch of some size at a time."""
    (router,) = model.turnout.all_routers()
    for start in range(0, len(rows), size):
        batch = [dict(row) for row in rows[start : start + size]]
        labels = study.data.collate(batch)["labels"]
        with torch.no_grad(), online.explore(), turnout.trace() as trace:
            logits = model(**inputs_of(model, batch, study.data.collate))["logits"]
        reward_B = router.reward(model.turnout.current_flow(), logits, labels)
        online.update(trace, sign * reward_B)


def shift_rows(fields: dict[str, Any], seed: int, quick: bool) -> list[Row]:
    """The shift and the attack of one seed."""
    config, out = settings(seed, quick), WORK / named("policy", seed, quick)
    study, dense = dense_host(fields, config, named("ag_news", seed, quick))
    labels = study.task.labels
    rows: list[Row] = []

    def only(rows: Any, topics: Sequence[str]) -> Any:
        wanted = [labels.index(topic) for topic in topics]
        return rows.select(np.flatnonzero(np.isin(rows["labels"], wanted)))

    train = study.data.train
    old, _ = learn(dense, study, config, out / "old", only(train, BEFORE))
    best, _ = learn(dense, study, config, out / "new", only(train, AFTER))
    # the dense host knows the training rows by heart: feedback comes on texts that it never saw
    wanted = {labels.index(topic) for topic in AFTER}
    unseen = [row for row in study.test if row["labels"] in wanted]
    order = np.random.default_rng(seed).permutation(len(unseen))
    unseen = [unseen[place] for place in order]
    most = min(STREAM, len(unseen) // 2)
    stream, test = unseen[:most], unseen[most:]
    trusted = listed(only(study.data.validation, AFTER))[:200]
    collate = study.data.collate
    for part, sign in (("shift", 1.0), ("attack", -1.0)):
        model = deepcopy(old)
        log = out / f"{part}.jsonl"
        log.unlink(missing_ok=True)
        online = OnlinePolicy(
            model,
            rate=3e-3,
            trust=0.05,
            guard=lambda model=model: trusted_reward(model, trusted, collate),
            check_every=3 if quick else 5,
            margin=0.005,
            log=log,
        )
        set_seed(seed)
        feedback(model, online, stream, study, sign, 8 if quick else 32)
        events = [online.updates, online.stopped]
        before, after, own = (float(rewards(m, test, study).mean()) for m in (old, model, best))
        rows.append(
            {
                "part": part,
                "seed": seed,
                "reward_before": before,
                "reward_after": after,
                "reward_of_own": own,
                "examples": len(stream),
                "updates": events[0],
                "stopped": events[1],
                "rolled_back": log.read_text(encoding="utf-8").count('"rolled_back": true'),
            }
        )
    return rows
