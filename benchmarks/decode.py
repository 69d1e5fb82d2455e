"""Does skipping save time when a model writes: random routes, token by token, beside economize.

Layers are skipped by fixed random masks, each token and layer with the same chance; keys and values
of what skips are written all the same. Two hosts in fp32: Gemma-3-270m, whose head holds most of
what a step reads, and one of the shapes of Qwen2.5-0.5B with a small vocabulary and random weights,
which shows the layers. Arms take turns in one process: the dense host by `generate`, ours by
`generate`, and economize 0.3.2's own loop with the very same masks. The time of the layers is that
of everything but the head. Decode: 64 tokens after a prompt of 16, without the prompt's pass;
prefill: the pass over a prompt of 256, its first token included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from common import Benchmark, Row, goal, main
from economize_peer import VERSION, decoder
from gemma import gemma
from given_routes import given_router, masks, set_masks
from stopwatch import Stopwatch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

import turnout
from turnout.cost import trace_share
from turnout.flow import Flow
from turnout.measure.stats import ratio_interval

SKIPS = (0.0, 0.25, 0.5, 0.75)
BATCHES = (1, 4, 16)
SLACK = 0.12  # of a dense layer's time, for keys, values and deciding
PROMPT, WRITTEN, PREFILL = 16, 64, 256
Arm = Callable[[Tensor, int], Any]


def hosts(quick: bool) -> dict[str, Any]:
    """Ready to infer, in fp32."""
    set_seed(0)
    config = Qwen2Config(
        vocab_size=4000,
        hidden_size=896,
        num_hidden_layers=4 if quick else 24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = {"Qwen2.5-0.5B shapes, small head": Qwen2ForCausalLM(config).eval()}
    if not quick:
        found["Gemma-3-270m"] = gemma()[0]
    return found


def by_generate(model: Any) -> Arm:
    """Greedy, exactly so many tokens."""

    def write(ids_BT: Tensor, count: int) -> Any:
        mask = torch.ones_like(ids_BT)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return model.generate(input_ids=ids_BT, attention_mask=mask, **options)

    return write


def timed(arm: Arm, head: Stopwatch, ids_BT: Tensor, count: int) -> tuple[float, float]:
    """Seconds of the whole, and of the head in it."""
    head.seconds, start = 0.0, time.perf_counter()
    arm(ids_BT, count)
    return time.perf_counter() - start, head.seconds


def measured(model: Any, name: str, batch: int, skips: Sequence[float], turns: int) -> list[Row]:
    """A row an arm and a kind of work; all arms of a batch size take turns."""
    depth = model.config.num_hidden_layers
    runs = {s: masks(s, depth, batch, PREFILL + WRITTEN + 1, seed=0) for s in skips}
    now = runs[skips[0]]
    routed, peer = deepcopy(model), deepcopy(model)
    with given_router():
        turnout.install(routed, {"kind": "given"})
    theirs = decoder(peer, lambda: now)
    models = {"dense": model, "turnout": routed, "economize": peer}
    watch = {arm: Stopwatch([each.lm_head], [each.lm_head]) for arm, each in models.items()}
    arms: dict[tuple[str, float], Arm] = {("dense", 0.0): by_generate(model)}
    for skip in skips:
        arms[("turnout", skip)], arms[("economize", skip)] = by_generate(routed), theirs
    drawn = torch.Generator().manual_seed(1)
    prompts = {
        kind: torch.randint(10, 3000, (batch, length), generator=drawn)
        for kind, length in (("decode", PROMPT), ("prefill", PREFILL))
    }
    whole: dict[tuple[str, str, float], list[float]] = {}
    layers: dict[tuple[str, str, float], list[float]] = {}
    for turn in range(turns + 1):
        for kind, ids in prompts.items():
            for (arm, skip), write in arms.items():
                now = runs.get(skip, now)
                set_masks(routed, now)
                spent, of_head = timed(write, watch[arm], ids, 1)
                if kind == "decode":
                    count = WRITTEN + 1 if turn else 3  # the first turn warms up
                    more, head_more = timed(write, watch[arm], ids, count)
                    spent, of_head = more - spent, head_more - of_head
                if turn:
                    whole.setdefault((kind, arm, skip), []).append(spent)
                    layers.setdefault((kind, arm, skip), []).append(spent - of_head)
    rows = []
    for (kind, arm, skip), seconds in whole.items():
        row: Row = {"host": name, "batch": batch, "skip": skip, "kind": kind, "arm": arm}
        row["seconds"] = statistics.median(seconds)
        row["layer_seconds"] = statistics.median(layers[(kind, arm, skip)])
        for title, table in (("whole", whole), ("layers", layers)):
            ratio = ratio_interval(table[(kind, arm, skip)], table[(kind, "dense", 0.0)])
            row[title] = ratio.value
            row[f"{title}_low"], row[f"{title}_high"] = ratio.low, ratio.high
        if arm == "turnout":
            set_masks(routed, runs[skip])
            row["units"], row["flops"] = 1 - skip, work(routed, prompts[kind], kind)
            other = layers[(kind, "economize", skip)]
            beside = ratio_interval(layers[(kind, arm, skip)], other)
            row["beside"] = beside.value
            row["beside_low"], row["beside_high"] = beside.low, beside.high
        rows.append(row)
    return rows


def work(routed: Any, ids: Tensor, kind: str) -> float:
    """Share of the routed FLOPs that a few passes of a kind of work spend."""
    spent: list[float] = []

    def note(flow: Flow) -> None:
        spent.append(float(trace_share(flow.trace)))

    with routed.turnout.watched(note):
        by_generate(routed)(ids, 17 if kind == "decode" else 1)
    return statistics.fmean(spent[1:] if kind == "decode" else spent)


def verdict(rows: list[Row]) -> dict[str, Row]:
    """Time of the layers over dense, and over economize with the same masks."""
    entries: dict[str, Row] = {}
    for row in rows:
        if row["arm"] != "turnout":
            continue
        kind, batch, skip = row["kind"], row["batch"], row["skip"]
        title = f"{row['host']}, {kind}, batch {batch}, {skip:.0%} skipped"
        interval = {"low": row["layers_low"], "high": row["layers_high"]}
        if kind == "prefill" or batch == 1:
            entry = goal(row["layers"], at_most=1 - skip + SLACK)
        else:
            entry = {"value": row["layers"], "goal": "a figure, no goal", "met": True}
        entries[f"{title}: layers over dense"] = {**entry, **interval}
        entry = goal(row["beside"], at_most=1.0)
        interval = {"low": row["beside_low"], "high": row["beside_high"]}
        entries[f"{title}: layers over economize"] = {**entry, **interval}
    return entries


def run() -> None:
    benchmark = Benchmark("decode", "skipping saves time when a model writes")
    skips = (0.5,) if benchmark.quick else SKIPS
    for name, model in hosts(benchmark.quick).items():
        for batch in (1, 4) if benchmark.quick else BATCHES:
            if benchmark.find(host=name, batch=batch) is None:
                turns = 1 if benchmark.quick else 3 if batch == 1 else 2
                benchmark.add(measured(model, name, batch, skips, turns))
    benchmark.finish(
        verdict(benchmark.rows),
        [
            f"economize {VERSION}, called through its decoding loop with a layer policy.",
            "layers: everything but the head, so what each loop itself takes is in it.",
            "economize's dense loop is not that of the dense arm: its row at 0 % skipped says what "
            "the two loops differ by.",
        ],
    )


if __name__ == "__main__":
    main(run)
