"""Executing experts: against one dense network of the active size, and against Transformers' ways.

8 experts of 768 x 2048 with a gated activation, the top 2 for each of 4,096 tokens. Ours sorts the
pairs of token and expert and computes group by group, by a loop of products or torch's grouped
product, whichever is faster here. Theirs: the implementations of Transformers on the same weights
and routes; `batched_mm` copies the matrices of every pair, which does not fit at 4,096 tokens (a
note says how much it would be), so ours and it meet at 64 tokens too. Forward, and forward with
backward to the rows and the weights; each arm right after the dense network. Ratios are medians
over rounds, of times of the same round; two runs of the same code differ by up to 2 %.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from common import Benchmark, Row, goal, main
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from turnout.execute.moe import run_pairs

TOKENS, WIDTH, INNER, EXPERTS, TOP = 4096, 768, 2048, 8, 2
FEW = 64  # tokens at which batched_mm fits too
SAME = 1.02  # two runs of the same code
THEIRS = ("eager", "batched_mm", "grouped_mm")
MOST_BYTES = 4e9
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Dense(nn.Module):
    """One network of the size that is active for a token."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * TOP * INNER, bias=False)
        self.down = nn.Linear(TOP * INNER, WIDTH, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        gate, up = self.up(x_ND).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def experts(implementation: str) -> Any:
    """Transformers' experts with one of its implementations; the same weights each time."""
    config = MixtralConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
        experts_implementation=implementation,
    )
    made = MixtralExperts(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return made


def ours(made: Any) -> Callable[..., Tensor]:
    """Our way, on a module of Transformers."""

    def run(x_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> Tensor:
        row_P = torch.arange(len(x_ND)).repeat_interleave(TOP)
        return run_pairs(made, x_ND, row_P, chosen_NK.flatten(), weight_NK.flatten())

    return run


def seconds(run: Callable[[], Tensor], backward: bool, modules: Iterable[nn.Module]) -> float:
    """One pass; with backward, from a fixed gradient, into no gradients of an earlier one."""
    for module in modules:
        module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    if backward:
        out = run()  # of rows that want a gradient
        out.backward(torch.ones_like(out))
    else:
        with torch.inference_mode():
            run()
    return time.perf_counter() - start


def copied(dtype: str, tokens: int) -> int:
    """Bytes of the matrices that batched_mm copies for all pairs."""
    return tokens * TOP * 3 * INNER * WIDTH * DTYPES[dtype].itemsize


def measure(dtype: str, backward: bool, rounds: int, tokens: int) -> list[Row]:
    """Time of each arm as a share of the dense network's."""
    generator = torch.Generator().manual_seed(1)
    x_ND = torch.randn(tokens, WIDTH, generator=generator).to(DTYPES[dtype])
    x_ND.requires_grad_(backward)
    probability = torch.randn(tokens, EXPERTS, generator=generator).softmax(-1)
    weight_NK, chosen_NK = probability.topk(TOP, dim=-1)
    weight_NK = weight_NK.to(DTYPES[dtype])
    dense = Dense().to(DTYPES[dtype])
    names = [n for n in THEIRS if n != "batched_mm" or copied(dtype, tokens) < MOST_BYTES]
    made = {name: experts(name).to(DTYPES[dtype]) for name in names}
    arms: dict[str, Callable[..., Tensor]] = {"ours": ours(made["eager"]), **made}
    expected = made["eager"](x_ND, chosen_NK, weight_NK)
    scale = expected.abs().max()
    for name, arm in arms.items():
        worst = (arm(x_ND, chosen_NK, weight_NK) - expected).abs().max() / scale
        assert worst < (1e-4 if dtype == "fp32" else 0.05), f"{name} is wrong by {worst}"
    rounds = rounds if tokens > FEW else 3 * rounds
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            whole = seconds(lambda: dense(x_ND), backward, [dense])
            spent = seconds(
                lambda arm=arm: arm(x_ND, chosen_NK, weight_NK), backward, made.values()
            )
            if round_:
                times[name].append((spent, whole))
    mine = times["ours"]
    return [
        {
            "dtype": dtype,
            "pass": "forward and backward" if backward else "forward",
            "arm": name,
            "tokens": tokens,
            **_spread("time_ratio", [spent / whole for spent, whole in found]),
            **_spread("ours_over", [a / b for (a, _), (b, _) in zip(mine, found, strict=True)]),
            "rounds": rounds,
        }
        for name, found in times.items()
    ]


def _spread(name: str, values: list[float]) -> Row:
    return {
        name: statistics.median(values),
        f"{name}_low": min(values),
        f"{name}_high": max(values),
    }


def run() -> None:
    benchmark = Benchmark("experts", "experts cost what one network of their active size costs")
    rounds, tokens = (3, 1024) if benchmark.quick else (9, TOKENS)
    for dtype in DTYPES:
        for backward in (False, True):
            for count in (tokens, FEW):
                kind = "forward and backward" if backward else "forward"
                if benchmark.find(dtype=dtype, tokens=count, **{"pass": kind}) is None:
                    benchmark.add(measure(dtype, backward, rounds, count))
    verdict = {}
    for row in benchmark.rows:
        name = f"{row['dtype']}, {row['pass']}, {row['tokens']:,} tokens"
        if row["arm"] != "ours":
            over = f"{name}: time over that of {row['arm']}"
            verdict[over] = goal(row["ours_over"], at_most=SAME)
        elif row["tokens"] != FEW:  # the goal is that of many tokens
            verdict[f"{name}: time over dense"] = goal(row["time_ratio"], at_most=1.15)
    notes = [
        f"batched_mm is left out at {tokens:,} tokens: in {dtype} it would copy "
        f"{copied(dtype, tokens) / 1e9:.0f} GB"
        for dtype in DTYPES
        if copied(dtype, tokens) >= MOST_BYTES
    ]
    benchmark.finish(verdict, notes)


if __name__ == "__main__":
    main(run)
