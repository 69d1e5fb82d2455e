"""Skipping heads saves time: the attention sub-block with half of its heads against all of them.

Arms run in one process, each right after a dense run on the same inputs, random tokens. A gate with
random weights chooses the top half: the same heads for the whole batch, or others for each sequence
or token; rows say how many different choices there were in a layer. What a block spends outside of
its feed-forward network counts as attention, so choosing, slicing and scattering are charged to the
routed arm.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from common import Benchmark, Row, goal, main
from stopwatch import Stopwatch
from transformers import AutoModel

import turnout
from turnout.demo.data import host_path
from turnout.train.saving import quiet_loading

GRAINS = ("batch", "sequence", "token")
SHAPES = {"32x128": (32, 128), "256x16": (256, 16)}
SHARES = (0.75, 0.5, 0.25)


class Arm:
    """A model, whole or with some heads, and the time of its attention sub-blocks."""

    def __init__(self, host: Any, grain: str | None, share: float) -> None:
        self.model = copy.deepcopy(host)
        if grain is not None:
            router = {"kind": "gate", "site": "head", "granularity": grain, "keep": "top-k"}
            turnout.install(self.model, [router])
            self.model.turnout.budget = share
            generator = torch.Generator().manual_seed(1)
            for parameter in self.model.turnout.parameters():  # so that choices differ
                parameter.data += torch.randn(parameter.shape, generator=generator)
        blocks = list(self.model.encoder.layer)
        self.blocks = Stopwatch(blocks, blocks)
        self.ffn = Stopwatch([b.intermediate for b in blocks], [b.output for b in blocks])

    @torch.inference_mode()
    def choices(self, inputs: dict[str, torch.Tensor]) -> float:
        """Different sets of heads in a layer, on average over the layers."""
        with turnout.trace() as trace:
            self.model(**inputs)
        counts = [len(route.weight_BTU.flatten(0, 1).unique(dim=0)) for route in trace.values()]
        return statistics.fmean(counts)

    @torch.inference_mode()
    def run(self, inputs: dict[str, torch.Tensor]) -> float:
        self.blocks.seconds = self.ffn.seconds = 0.0
        self.model(**inputs)
        return self.blocks.seconds - self.ffn.seconds


def measure(host: Any, shape: str, dtype: str, rounds: int) -> list[Row]:
    """Median of the paired ratios of each arm."""
    batch, length = SHAPES[shape]
    ids = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dense = Arm(host, None, 1.0)
    arms = {(grain, share): Arm(host, grain, share) for grain in GRAINS for share in SHARES}
    ratios: dict[tuple[str, float], list[float]] = {key: [] for key in arms}
    for round_ in range(rounds + 2):
        for key, arm in arms.items():
            whole = dense.run(inputs)
            part = arm.run(inputs)
            if round_ >= 2:
                ratios[key].append(part / whole)
    return [
        {
            "shape": shape,
            "dtype": dtype,
            "granularity": grain,
            "heads": share,
            "time_ratio": statistics.median(values),
            "time_ratio_low": min(values),
            "time_ratio_high": max(values),
            "choices": arms[grain, share].choices(inputs),
            "rounds": rounds,
        }
        for (grain, share), values in ratios.items()
    ]


def run() -> None:
    benchmark = Benchmark("heads", "half of the heads take at most 0.65 of the time")
    with quiet_loading():
        host = AutoModel.from_pretrained(host_path(), dtype=torch.float32).eval()
    rounds = 3 if benchmark.quick else 15
    for dtype in ("fp32", "bf16"):
        typed = host.to(torch.bfloat16) if dtype == "bf16" else host.float()
        for shape in SHAPES:
            if benchmark.find(shape=shape, dtype=dtype) is None:
                benchmark.add(measure(typed, shape, dtype, rounds))
    verdict = {
        f"{row['granularity']}, {row['dtype']}, {row['shape']}": goal(
            row["time_ratio"], at_most=0.65
        )
        for row in benchmark.rows
        if row["heads"] == 0.5
    }
    benchmark.finish(verdict)


if __name__ == "__main__":
    main(run)
