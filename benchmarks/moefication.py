"""Splitting pretrained feed-forward networks into experts, a quarter of which run for a token.

MiniLM trained on AG News, and Gemma-3-270m as it is. Neurons that are active together make an
expert (8 a network); gates learn from the dense host which experts matter (MoEfication), and run
the best quarter. Beside them at the same work: experts drawn at random, and a network that keeps
its most important quarter of neurons for all tokens (the static model). Each as it is, and trained
further alike with the dense host as teacher. Time is that of the feed-forward networks,
choosing included, each arm right after a dense run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import Benchmark, Row, goal, main, workers_for
from datasets_here import ag_news
from frontier_claim import WORK, named
from gemma import gemma
from safetensors.torch import load_file, save_file
from stopwatch import Stopwatch
from torch import Tensor, nn
from torch.nn import functional as F
from trained import dense_host, dense_hosts, trained_from
from transformers import set_seed

import turnout
from turnout.hosts.attach import blocks_of, find_family
from turnout.train.config import TrainConfig
from turnout.train.data import Data
from turnout.train.prepare import batches, prepare
from turnout.train.teach_experts import teach_experts
from turnout.units.experts import neuron_importance, reorder, split_by_data
from turnout.workers import in_processes

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
WINDOW = 256


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
            order = importance[f"{view.stack.name}.{view.layer}"].argsort(descending=True)
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


def settings(seed: int, quick: bool) -> TrainConfig:
    """Of the dense host."""
    return TrainConfig(
        epochs=1.0 if quick else 2.0,
        dropout=0.0,
        freeze="embeddings",
        learning_rate=2e-4,
        budget=SHARE,
        anneal=0.0,
        seed=seed,
    )


def changed(arm: str, model: Any, data: Data | None) -> Any:
    """A host made into an arm; without data, as far as its weights' shapes go."""
    if arm == "pruned":
        prune(model, None if data is None else batches(data))
        return model
    turnout.install(model, [GATE if arm == "experts" else CHANCE])
    if data is not None:
        prepare(model, data)
    model.turnout.budget = SHARE
    return model


def make_arm(arm: str, fields: dict[str, Any], seed: int, quick: bool) -> list[Row]:
    """An arm on AG News, as it is and trained for one more pass: accuracies; its weights are left
    in benchmarks/work to be timed."""
    config = settings(seed, quick)
    study, dense = dense_host(fields, config, named("ag_news", seed, quick))
    out = WORK / named("moefication", seed, quick)
    out.mkdir(exist_ok=True)

    def change(model: Any) -> Any:
        set_seed(seed)
        return changed(arm, model, study.data)

    more = config.model_copy(update={"learning_rate": 1e-4, "epochs": 1.0})
    base, rows = study.accuracy(dense), []
    for state in STATES:
        if state == "trained":
            model = trained_from(dense, change, study, more, out / arm, title=arm)
        else:
            model = change(deepcopy(dense)).eval()
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


def windows(tokenizer: Any, file: Path, most: int) -> Tensor:
    """Text as windows of tokens, each after the begin token, (N, T)."""
    ids = tokenizer(file.read_text(encoding="utf-8")[: 8 * most], add_special_tokens=False)
    flat = torch.tensor(ids["input_ids"][:most])
    flat = flat[: len(flat) // WINDOW * WINDOW].view(-1, WINDOW)
    return torch.cat([torch.full((len(flat), 1), tokenizer.bos_token_id), flat], 1)


@torch.inference_mode()
def perplexity(model: Any, ids_NT: Tensor) -> float:
    """Of the tokens after the first of each window."""
    total = 0.0
    for part in ids_NT.split(4):
        logits = model(input_ids=part[:, :-1])["logits"]
        total += float(
            F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        )
    return math.exp(total / ids_NT[:, 1:].numel())


def tune(model: Any, dense: Any, ids_NT: Tensor, rate: float, title: str) -> None:
    """One pass over the windows: the language loss and the dense host's answers; the embeddings,
    which are the head too, stay."""
    model.requires_grad_(True)
    model.get_input_embeddings().weight.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    steps = ids_NT[torch.randperm(len(ids_NT), generator=torch.Generator().manual_seed(0))].split(4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / len(steps))
    )
    model.train()
    start = time.perf_counter()
    for step, part in enumerate(steps):
        with torch.inference_mode():
            wanted = dense(input_ids=part[:, :-1])["logits"].log_softmax(-1)
        logits = model(input_ids=part[:, :-1])["logits"]
        loss = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        loss = loss + F.kl_div(
            logits.log_softmax(-1).flatten(0, 1),
            wanted.clone().flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"  {title}: step {step} of {len(steps)}, loss {float(loss):.3f}, "
                  f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    model.eval()


def language(benchmark: Benchmark) -> Iterator[Row]:
    """Arms on WikiText-2: validation text to learn from, test text to judge by."""
    folder = benchmark.folder("wikitext2")
    dense, tokenizer = gemma()
    seen = windows(tokenizer, folder / "valid.txt", 4_000 if benchmark.quick else 60_000)
    test = windows(tokenizer, folder / "test.txt", 4_000 if benchmark.quick else 60_000)
    learn = [{"input_ids": part[:, :-1], "labels": part[:, :-1]} for part in seen[:80].split(4)]

    def change(arm: str, model: Any) -> Any:
        set_seed(0)
        if arm == "pruned":
            prune(model, learn)
            return model
        turnout.install(model, [{**(GATE if arm == "experts" else CHANCE), "split": "random"}])
        split_by_data(model, learn, "coactivation")
        if arm == "experts":
            held = teach_experts(model, model.turnout.all_routers()[0], learn)
            print(f"  the best quarter of the experts holds {held:.0%} of the whole", flush=True)
        model.turnout.budget = SHARE
        return model

    base = perplexity(dense, test)
    for arm in ARMS:
        model = change(arm, deepcopy(dense)).eval()
        for state in STATES:
            if state == "trained":
                tune(model, dense, seen, 1e-4, arm)
            spent = times(
                dense, {arm: model}, {"input_ids": test[:4, :-1]}, 1 if benchmark.quick else 7
            )
            yield {
                "host": "gemma3-270m",
                "seed": 0,
                "arm": f"{arm}, {state}",
                "perplexity": perplexity(model, test),
                "dense_perplexity": base,
                **spent[arm],
            }


def run() -> None:
    benchmark = Benchmark("moefication", "a quarter of the neurons keeps the quality", (0, 1, 2))
    quick = benchmark.quick
    fields = {
        seed: ag_news(
            benchmark.folder("ag_news"), WORK / f"{named('ag_news', seed, quick)}-data", seed, quick
        )
        for seed in benchmark.seeds
        if benchmark.find(host="minilm", seed=seed) is None
    }
    dense_hosts(
        [(each, settings(s, quick), named("ag_news", s, quick)) for s, each in fields.items()]
    )
    calls = [(make_arm, arm, fields[seed], seed, quick) for seed in fields for arm in ARMS]
    made = [row for rows in in_processes(calls, workers_for(calls)) for row in rows]
    for seed in fields:
        rows = [row for row in made if row["seed"] == seed]
        benchmark.add(minilm(rows, fields[seed], seed, quick))
    if benchmark.find(host="gemma3-270m") is None:
        benchmark.add(language(benchmark))

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
