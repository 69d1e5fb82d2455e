"""Splitting pretrained feed-forward networks into experts, a quarter of which run for a token.

MiniLM trained on AG News, and Gemma-3-270m as it is. Neurons that are active together make an
expert (8 a network); gates learn from the dense host which experts matter (MoEfication), and run
the best quarter. Beside them at the same work: experts drawn at random, and a network that keeps
its most important quarter of neurons for all tokens (the static model). Each as it is, and trained
further alike with the dense host as teacher. Time is that of the feed-forward networks,
choosing included, each arm right after a dense run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from common import Benchmark, Row, goal, main, workers_for
from frontier_claim import WORK, named
from quarter import ARMS, CHANCE, GATE, SHARE, STATES, prune, times
from quarter_language import language
from safetensors.torch import load_file, save_file
from trained import ag_news_hosts, dense_host, host_settings, trained_from
from transformers import set_seed

import turnout
from turnout.train.config import TrainConfig
from turnout.train.data import Data
from turnout.train.prepare import batches, prepare
from turnout.workers import in_processes


def settings(seed: int, quick: bool) -> TrainConfig:
    """Of the dense host."""
    return host_settings(seed, quick, budget=SHARE, anneal=0.0)


def changed(arm: str, model: Any, data: Data | None) -> Any:
    """A host made into an arm; without data, as far as its weights' shapes go."""
    if arm == "pruned":
        prune(model, None if data is None else batches(data.train, data.collate))
        return model
    turnout.install(model, [GATE if arm == "experts" else CHANCE])
    if data is not None:
        prepare(model, data.train, data.collate)
    model.turnout.budget = SHARE
    return model


def make_arm(arm: str, fields: dict[str, Any], seed: int, quick: bool) -> list[Row]:
    """An arm on AG News, as it is and trained for one more pass: accuracies; its weights are left
    in benchmarks/work to be timed."""
    config = settings(seed, quick)
    study, dense = dense_host(fields, config, named("ag_news", seed, quick))
    out = WORK / named("moefication", seed, quick)
    out.mkdir(exist_ok=True)

    set_seed(seed)
    first = changed(arm, deepcopy(dense), study.data).eval()

    def start(model: Any) -> None:  # neurons are clustered once
        changed(arm, model, None).load_state_dict(first.state_dict())

    more = config.model_copy(update={"learning_rate": 1e-4, "epochs": 1.0})
    base, rows = study.accuracy(dense), []
    for state in STATES:
        model = first
        if state == "trained":
            model = trained_from(dense, start, study, more, out / arm, title=arm)
        if hasattr(model, "turnout"):
            model.turnout.budget = SHARE
        name = f"{arm}, {state}"
        save_file(model.state_dict(), out / f"{name}.safetensors")
        rows.append(
            {
                "host": "minilm",
                "seed": seed,
                "arm": name,
                "accuracy": study.accuracy(model),
                "dense_accuracy": base,
            }
        )
    return rows


def minilm(rows: list[Row], fields: dict[str, Any], seed: int, quick: bool) -> Iterator[Row]:
    """The rows of a seed with the times of their arms."""
    study, dense = dense_host(fields, settings(seed, quick), named("ag_news", seed, quick))
    models: dict[str, Any] = {}
    for row in rows:
        model = changed(row["arm"].split(",")[0], deepcopy(dense), None)
        file = WORK / named("moefication", seed, quick) / f"{row['arm']}.safetensors"
        model.load_state_dict(load_file(file))
        models[row["arm"]] = model.eval()
    test = study.data.collate([dict(row) for row in study.test[:64]])
    test.pop("labels")
    spent = times(dense, models, test, 3 if quick else 15)
    for row in rows:
        yield {**row, **spent[row["arm"]]}


def run() -> None:
    benchmark = Benchmark("moefication", "a quarter of the neurons keeps the quality", (0, 1, 2))
    quick = benchmark.quick
    missing = [seed for seed in benchmark.seeds if benchmark.find(host="minilm", seed=seed) is None]
    fields = ag_news_hosts(benchmark, {seed: settings(seed, quick) for seed in missing})
    calls = [(make_arm, arm, fields[seed], seed, quick) for seed in fields for arm in ARMS]
    made = [row for rows in in_processes(calls, workers_for(calls)) for row in rows]
    for seed in fields:
        rows = [row for row in made if row["seed"] == seed]
        benchmark.add(minilm(rows, fields[seed], seed, quick))
    arms = [
        arm for arm in ARMS if benchmark.find(host="gemma3-270m", arm=f"{arm}, {STATES[0]}") is None
    ]
    for rows in language(benchmark, arms) if arms else ():
        benchmark.add(rows)

    def mean(host: str, arm: str, value: Any) -> float:
        return statistics.fmean(
            value(r) for r in benchmark.rows if r["host"] == host and r["arm"] == arm
        )

    verdict = {}
    for arm in ("experts, as it is", "experts, trained"):
        kept = mean("minilm", arm, lambda r: r["accuracy"] / r["dense_accuracy"])
        verdict[f"minilm, {arm}: accuracy kept"] = goal(kept, at_least=0.95)
        kept = mean("gemma3-270m", arm, lambda r: r["dense_perplexity"] / r["perplexity"])
        verdict[f"gemma, {arm}: dense perplexity over its own"] = goal(kept, at_least=0.95)
    for host in ("minilm", "gemma3-270m"):
        ratio = mean(host, "experts, as it is", lambda r: 1 / r["ffn_time"])
        verdict[f"{host}: speed-up of the networks"] = goal(ratio, at_least=2.0)
    for host, key, sign in (("minilm", "accuracy", 1), ("gemma3-270m", "perplexity", -1)):
        for other in ("random", "pruned"):
            for state in STATES:
                gain = sign * (
                    mean(host, f"experts, {state}", lambda r, key=key: r[key])
                    - mean(host, f"{other}, {state}", lambda r, key=key: r[key])
                )
                verdict[f"{host}, {state}: experts over {other}"] = goal(gain, at_least=0.0)
    benchmark.finish(verdict)


if __name__ == "__main__":
    main(run)
