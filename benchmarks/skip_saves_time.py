"""Skipping saves time: what a share of active rows costs, as a share of the dense time.

Every arm runs in one process, interleaved, on the same inputs. Time is taken by hooks around blocks
and around their attention, the same hooks for the dense host and for the routed model. What a block
spends outside of its attention counts as its FFN, so deciding, gathering and scattering are charged
to the routed part.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from common import Benchmark, Row, goal, main
from stopwatch import Stopwatch
from transformers import AutoModel

import turnout
from turnout.demo.data import host_path
from turnout.train.saving import quiet_loading

SHARES = (0.75, 0.5, 0.25, 0.1)
PAIRS = {"always on": 4}  # in a round: its goal is finer than the spread of single runs
SHAPES = {"32x128": (32, 128), "256x16": (256, 16)}


class Arm:
    """A model, whole or routed, with stopwatches on its blocks and their attention."""

    def __init__(self, host: Any, router: dict[str, Any] | None) -> None:
        self.model = copy.deepcopy(host)
        if router is not None:
            turnout.install(self.model, [router])
            self.model.turnout.seed = 0
        blocks = list(self.model.encoder.layer)
        attention = [block.attention for block in blocks]
        self.attention = Stopwatch(attention, attention)
        self.blocks = Stopwatch(blocks, blocks)

    @torch.inference_mode()
    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
        self.attention.seconds = self.blocks.seconds = 0.0
        start = time.perf_counter()
        self.model(**inputs)
        whole = time.perf_counter() - start
        blocks = self.blocks.seconds
        return {"ffn": blocks - self.attention.seconds, "blocks": blocks, "forward": whole}

    @torch.inference_mode()
    def share(self, inputs: dict[str, torch.Tensor]) -> float:
        with turnout.trace() as trace:
            self.model(**inputs)
        return statistics.fmean(float(r.active_BT.float().mean()) for r in trace.values())


def arms(host: Any) -> dict[str, Arm]:
    """Dense, every share at two sites, and a router that is always on."""
    found = {"dense": Arm(host, None)}
    for share in SHARES:
        skip = {"kind": "random-skip", "rate": 1 - share}
        found[f"ffn {share}"] = Arm(host, {**skip, "site": "ffn", "granularity": "token"})
        found[f"layer {share}"] = Arm(host, {**skip, "site": "layer", "granularity": "sequence"})
    found["always on"] = Arm(host, {"kind": "gate", "site": "layer", "granularity": "token"})
    return found


def measure(host: Any, shape: str, dtype: str, rounds: int) -> list[Row]:
    """Interleaved rounds; each run is set against a dense run right before it, then the median."""
    batch, length = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (batch, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    every = arms(host)
    parts = {"ffn": "ffn", "layer": "blocks", "always": "forward"}
    ratios: dict[str, list[float]] = {name: [] for name in every if name != "dense"}
    forward: dict[str, list[float]] = {name: [] for name in ratios}
    for round_ in range(rounds + 2):
        for name in ratios:
            for _ in range(PAIRS.get(name, 1)):
                dense = every["dense"].run(inputs)
                spent = every[name].run(inputs)
                if round_ >= 2:
                    part = parts[name.split()[0]]
                    ratios[name].append(spent[part] / dense[part])
                    forward[name].append(spent["forward"] / dense["forward"])
    return [
        {
            "shape": shape,
            "dtype": dtype,
            "arm": name,
            "part": parts[name.split()[0]],
            "rows_active": every[name].share(inputs),
            "time_ratio": statistics.median(values),
            "time_ratio_low": min(values),
            "time_ratio_high": max(values),
            "forward_ratio": statistics.median(forward[name]),
            "rounds": len(values),
        }
        for name, values in ratios.items()
    ]


def run() -> None:
    benchmark = Benchmark("skip_saves_time", "a skipped row is not paid for")
    with quiet_loading():
        host = AutoModel.from_pretrained(host_path(), dtype=torch.float32).eval()
    rounds = 3 if benchmark.quick else 15
    for dtype in ("fp32", "bf16"):
        typed = host.to(torch.bfloat16) if dtype == "bf16" else host.float()
        for shape in SHAPES:
            if benchmark.find(shape=shape, dtype=dtype) is None:
                benchmark.add(measure(typed, shape, dtype, rounds))
    verdict = {}
    for row in benchmark.rows:
        name = f"{row['arm']}, {row['dtype']}, {row['shape']}"
        kind = row["arm"].split()[0]
        slack = {"ffn": 0.10, "layer": 0.05}.get(kind)
        limit = 1.03 if slack is None else round(row["rows_active"] + slack, 4)
        verdict[name] = goal(row["time_ratio"], at_most=limit)
    benchmark.finish(verdict, ["256x16 is reported whatever it is; the claim is about 32x128"])


if __name__ == "__main__":
    main(run)
