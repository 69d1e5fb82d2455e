"""Perplexity against the time of the layers: Gemma-3-270m on WikiText-2, its weights frozen.

Routed: a gate for each layer and token, and early exit by a probe; both learn from the validation
text, a few steps, with the dense host as teacher. Beside them: layers skipped at random; and layers
taken out for good, as the choices of ShortGPT (arXiv 2403.03853) and SLEB (arXiv 2402.09025) in
economize 0.3.2 say, and the first ones. Judged on the test text. Nothing of the host is trained in
any arm. Every arm is timed over a prefill of four windows, in turns; gates are compared with the
front of the static models at their own layer time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from common import Benchmark, Row, goal, main, spread
from economize_peer import unpacked
from gemma import gemma
from quarter_language import windows
from stopwatch import Stopwatch
from torch import Tensor
from torch.nn import functional as F
from transformers import set_seed
from untrained_noise import alike

import turnout
from turnout import objectives
from turnout.cost import trace_share
from turnout.hosts.cut import keep_layers
from turnout.hosts.read_out import read_out
from turnout.measure.frontier import front, line_at
from turnout.measure.stats import ratio_interval

BUDGETS = (0.9, 0.8, 0.7)
REMOVED = (1, 2, 4)
GATE = {"kind": "gate", "granularity": "token", "hold_first": 1, "hold_last": 1}
CHANCE = {"kind": "random-skip", "granularity": "token", "hold_first": 1, "hold_last": 1}
EXIT = {"kind": "token-exit", "criterion": "learned", "hold_first": 4}
PLACES = 48  # tokens of a window that a step judges: the head takes most of it
BATCH = 8


def perplexity(model: Any, ids_NT: Tensor) -> float:
    """Of the tokens after the first of each window."""
    total = 0.0
    with torch.inference_mode():
        for part in ids_NT.split(2):
            logits = model(input_ids=part[:, :-1], use_cache=False)["logits"]
            flat = logits.flatten(0, 1).float()
            total += float(F.cross_entropy(flat, part[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / ids_NT[:, 1:].numel())


def parts(ids_NT: Tensor, seed: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows in an order drawn once, with the places that are judged."""
    drawn = torch.Generator().manual_seed(seed)
    order = ids_NT[torch.randperm(len(ids_NT), generator=drawn)].split(BATCH)
    for part in order[:most]:
        yield part, torch.randperm(part.shape[1] - 1, generator=drawn)[:PLACES]


def teach_gate(model: Any, dense: Any, ids_NT: Tensor, seed: int, steps: int) -> None:
    """The gates alone: the dense host's answers, and a budget that falls to 0.7."""
    learned = list(model.turnout.parameters())
    model.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned, lr=3e-3, weight_decay=0.0)
    model.train()
    start = time.perf_counter()
    for step, (part, places) in enumerate(parts(ids_NT, seed, steps)):
        options: dict[str, Any] = {"input_ids": part[:, :-1], "logits_to_keep": places}
        with torch.no_grad():
            wanted = dense(**options, use_cache=False)["logits"].float()
        found = model(**options, use_cache=False)["logits"].float()
        share = trace_share(model.turnout.current_flow().trace)
        goal_now = 1.0 - 0.3 * min(1.0, (step + 1) / (0.6 * steps))
        loss = objectives.distill(found, wanted) + 10 * objectives.budget(share, goal_now)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        if step % 10 == 0:
            spent = time.perf_counter() - start
            told = f"loss {float(loss.detach()):.3f}, share {float(share):.2f}, {spent:.0f} s"
            print(f"  gate: step {step} of {steps}, {told}", flush=True)
    model.eval()


def teach_exit(model: Any, dense: Any, ids_NT: Tensor, seed: int, steps: int) -> None:
    """The probes alone: does a layer's answer differ from the last one's."""
    (router,) = model.turnout.all_routers()
    optimizer = torch.optim.AdamW([router.probe], lr=3e-2, weight_decay=0.0)
    stack = model.turnout.stacks["decoder"]
    for part, places in parts(ids_NT, seed, steps):
        some = places[: PLACES // 4]
        with torch.no_grad():
            out = dense(
                input_ids=part[:, :-1],
                logits_to_keep=some,
                output_hidden_states=True,
                use_cache=False,
            )
            said = out.logits.argmax(-1)
        loss = torch.zeros(())
        for place, site in enumerate(router.sites):
            with torch.no_grad():
                state = out.hidden_states[site.layer][:, some]
                differs = (read_out(dense, stack, state).argmax(-1) != said).float()
            loss = loss + F.binary_cross_entropy(router._probed(place, state), differs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def routed(kind: str, dense: Any, learn: Tensor, seed: int, quick: bool) -> Any:
    """A copy of the host with its router, trained and with a calibrated dial."""
    set_seed(seed)
    model = deepcopy(dense)
    turnout.install(model, {"gate": GATE, "random": CHANCE, "exit": EXIT}[kind])
    model.turnout.seed = seed
    steps = 2 if quick else 40
    if kind == "gate":
        teach_gate(model, dense, learn, seed, steps)
    if kind == "exit":
        teach_exit(model, dense, learn, seed, 2 if quick else 24)
    some = [{"input_ids": row[:-1].tolist()} for row in learn[: 2 if quick else 8]]
    turnout.calibrate(model, some, alike, batch_tokens=512, passes=4 if quick else 8)
    return model


def removals(dense: Any, learn: Tensor, quick: bool) -> dict[str, list[int]]:
    """Blocks that static models keep, by name."""
    unpacked()
    import economize
    from economize.techniques.prune.depth import block_influence, shortgpt_select, sleb_select

    adapter = economize.apply(deepcopy(dense)).runner.adapter
    ids = [row[None, :129] for row in learn[:: max(1, len(learn) // 4)][:4]]
    depth, found = adapter.num_layers, {}
    with torch.inference_mode():
        influence = block_influence(adapter, ids)
        for count in REMOVED[:1] if quick else REMOVED:
            choices = {"shortgpt": shortgpt_select(influence, count)}
            if not quick:
                middle = list(range(2, depth))  # neither the first nor the last, as SLEB says
                choices["sleb"] = sleb_select(adapter, ids, count, middle)
            choices["first"] = list(range(depth - count + 1, depth + 1))
            for name, gone in choices.items():
                found[f"{name}, {count} out"] = [n for n in range(depth) if n + 1 not in gone]
    return found


def layer_times(arms: dict[str, tuple[Any, float]], ids_BT: Tensor, turns: int) -> dict[str, Row]:
    """Seconds of all blocks in one pass, over the dense host's, in turns."""
    watches = {}
    for name, (model, _) in arms.items():
        blocks = model.base_model.layers
        watches[name] = Stopwatch([blocks[0]], [blocks[-1]])
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with torch.inference_mode():
        for turn in range(turns + 1):
            for name, (model, budget) in arms.items():
                watches[name].seconds = 0.0
                if hasattr(model, "turnout"):
                    model.turnout.budget = budget
                model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
                if turn:
                    seconds[name].append(watches[name].seconds)
    found = {}
    for name, each in seconds.items():
        ratio = ratio_interval(each, seconds["dense"])
        found[name] = {
            "layer_seconds": statistics.median(each),
            "time": ratio.value,
            "time_low": ratio.low,
            "time_high": ratio.high,
        }
    return found


def measured(benchmark: Benchmark, seed: int) -> list[Row]:
    """All arms of a seed. Static models do not depend on it, but are timed beside the others."""
    quick, folder = benchmark.quick, benchmark.folder("wikitext2")
    dense, tokenizer = gemma(torch.bfloat16)
    learn = windows(tokenizer, folder / "valid.txt", 4_000 if quick else 96_000)
    test = windows(tokenizer, folder / "test.txt", 2_000 if quick else 10_000)
    arms: dict[str, tuple[Any, float]] = {"dense": (dense, 1.0)}
    for kind in ("gate", "random", "exit"):
        print(f"== {kind}, seed {seed}", flush=True)
        model = routed(kind, dense, learn, seed, quick)
        for budget in BUDGETS[::2] if quick else BUDGETS:
            arms[f"{kind} at {budget:g}"] = (model, budget)
    for name, kept in removals(dense, learn, quick).items():
        arms[name] = (keep_layers(dense, kept), 1.0)
    rows: list[Row] = []
    for name, (model, budget) in arms.items():
        row: Row = {"seed": seed, "arm": name, "family": name.split()[0].strip(","), "share": 1.0}
        if hasattr(model, "turnout"):
            model.turnout.budget = budget
            with torch.inference_mode(), turnout.trace() as trace:
                model(input_ids=test[:4, :-1], use_cache=False, logits_to_keep=1)
            row["share"] = float(trace_share(trace))
        row["perplexity"] = perplexity(model, test)
        rows.append(row)
        print(f"  {name}: perplexity {row['perplexity']:.2f}", flush=True)
    spent = layer_times(arms, test[:4, :-1], 2 if quick else 7)
    return [{**row, **spent[row["arm"]]} for row in rows]


def gains(rows: Sequence[Row], family: str, others: Sequence[str]) -> dict[str, list[float]]:
    """ln perplexity that the front of other arms has above each arm of a family, at its time."""
    found: dict[str, list[float]] = {}
    for row in (row for row in rows if row["family"] == family):
        here = [each for each in rows if each["seed"] == row["seed"]]
        points = [
            (each["time"], -math.log(each["perplexity"]))
            for each in here
            if each["family"] in ("dense", *others)
        ]
        beside = line_at(front(points), row["time"])
        if beside is not None:
            gain = -beside - math.log(row["perplexity"])
            found.setdefault(row["arm"], []).append(gain)
    return found


def verdict(rows: list[Row]) -> dict[str, Row]:
    """What each routed arm gains, as a difference of ln perplexity: 0.1 is a tenth less."""
    entries: dict[str, Row] = {}
    static = ("shortgpt", "sleb", "first")
    pairs = [("gate", static, "static models"), ("gate", ("random",), "random skipping")]
    pairs += [("gate", ("exit",), "early exit"), ("exit", static, "static models")]
    for family, others, title in pairs:
        for arm, each in gains(rows, family, others).items():
            entry = goal(statistics.fmean(each), at_least=0.0)
            entry["over_seeds"] = spread(each)
            entries[f"{arm}: ln perplexity below {title} of its layer time"] = entry
    return entries


def run() -> None:
    benchmark = Benchmark("lm_frontier", "perplexity against layer time, Gemma-3-270m", (0,))
    for seed in benchmark.seeds:
        if benchmark.find(seed=seed) is None:
            benchmark.add(measured(benchmark, seed))
    benchmark.finish(
        verdict(benchmark.rows),
        [
            "Met: below the front of the others at the same measured time of the layers; an arm "
            "that is faster than all of them has no entry.",
            "The head and the embeddings are in no time; bf16, prefill of 4 x 256 tokens.",
        ],
    )


if __name__ == "__main__":
    main(run, keeps=False)
