"""In which number format a training step is fastest here: timed on real steps, not assumed.

bf16 products are several times faster than fp32 on a CPU with AMX and slower on one without. And
they are not all of a step: torch's fused attention on a CPU has a slow bf16 backward pass, so
bf16 is tried with plain attention products too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.execute.batches import uncached
from turnout.train.precision import faster_precision

ROUNDS = 3
# bf16 gives digits away: it has to be clearly faster.
WORTH = 0.9


@dataclass(frozen=True)
class StepFormat:
    """bf16: autocast to it. attention: implementation to train with; None = the host's own."""

    bf16: bool = False
    attention: str | None = None

    def __str__(self) -> str:
        name = "bf16" if self.bf16 else "fp32"
        return name if self.attention is None else f"{name} with {self.attention} attention"


FP32, BF16, BF16_EAGER = StepFormat(), StepFormat(True), StepFormat(True, "eager")
_known: dict[tuple[Any, ...], dict[StepFormat, float]] = {}


def step_format(
    wanted: Literal["auto", "fp32", "bf16"], model: PreTrainedModel, batch: Mapping[str, Tensor]
) -> tuple[StepFormat, dict[StepFormat, float]]:
    """The format to train a model in, and the seconds of a step in each format timed just now.

    batch: labelled inputs of a usual size. Nothing of the model is changed, and no random number
    is taken from the generators.
    """
    if wanted == "fp32":
        return FP32, {}
    if torch.cuda.is_available():  # where the Trainer will move the model
        bf16 = wanted == "bf16" or faster_precision("cuda") == "bf16"
        return (BF16 if bf16 else FP32), {}
    formats = [BF16, BF16_EAGER] if wanted == "bf16" else [FP32, BF16, BF16_EAGER]
    watched = getattr(model, "_turnout_attention", None) is not None
    if watched:  # routers look at or choose within attention, which only our own function serves
        formats.remove(BF16_EAGER)
    shape = tuple(batch["input_ids"].shape) if "input_ids" in batch else None
    # the depth does not change which is fastest, so cut models need no timing of their own
    width = model.config.get_text_config().hidden_size
    key = (type(model).__name__, width, shape, wanted, watched)
    timed = {} if key in _known else _timed(model, batch, formats)
    seconds = _known.setdefault(key, timed)
    best = min(seconds, key=lambda each: seconds[each])
    if FP32 in seconds and seconds[best] > WORTH * seconds[FP32]:
        best = FP32
    return best, timed


@contextmanager
def attention_of(model: PreTrainedModel, format_: StepFormat) -> Iterator[None]:
    """Give a model the format's attention inside, and its own back afterwards."""
    if format_.attention is None:
        yield
        return
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation(format_.attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _timed(
    model: PreTrainedModel, batch: Mapping[str, Tensor], formats: list[StepFormat]
) -> dict[StepFormat, float]:
    """The fastest of a few steps in each format, in turns, after one to warm up."""
    training = model.training
    model.train()
    seconds = dict.fromkeys(formats, float("inf"))
    with torch.random.fork_rng(devices=[]):
        for round_ in range(ROUNDS + 1):
            for format_ in formats:
                with attention_of(model, format_):
                    start = time.perf_counter()
                    with torch.autocast("cpu", torch.bfloat16, enabled=format_.bf16):
                        loss = model(**batch, **uncached(model))["loss"]
                    if loss.requires_grad:
                        loss.backward()
                    spent = time.perf_counter() - start
                if round_:
                    seconds[format_] = min(seconds[format_], spent)
    model.zero_grad(set_to_none=True)
    model.train(training)
    return seconds
