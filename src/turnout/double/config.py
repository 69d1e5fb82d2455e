"""What a recipe of several tasks says about training and measuring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnout.double.mixing import Sampling
from turnout.train.config import Count, Rate, Seed, Share, TrainConfig

Strategy = Literal[
    "full", "partial", "head", "router", "discriminative", "lora", "prompt", "p-tuning", "prefix"
]
PROMPTS: frozenset[Strategy] = frozenset({"prompt", "p-tuning", "prefix"})
APART: frozenset[Strategy] = frozenset({"lora", "discriminative"})  # leave no trace of their own
FROZEN: frozenset[Strategy] = frozenset({"prompt", "p-tuning", "prefix", "head", "router", "lora"})


class TasksTrainConfig(BaseModel):
    """Training of all tasks at once, a batch of one task after a batch of another.

    strategy: what learns, beside the heads. ``full``: all. ``partial``: the last ``blocks`` of the
    backbone, or what is ``named`` by the beginning of its name in it; routers. ``head``: nothing.
    ``router``: routers and their units. ``discriminative``: all, each block slower by ``decay``
    than the one above it, and blocks are let in from the top over the first part ``unfreeze`` of
    the training (ULMFiT, Howard and Ruder 2018, arXiv 1801.06146); classifiers at the blocks below
    the last learn too, and count ``inner`` (see double/inner.py). ``lora``: adapters of width
    ``rank`` by PEFT, merged into the backbone in the end; routers. ``prompt``, ``p-tuning``,
    ``prefix``: ``prompt_tokens`` states, or keys and values, before the text (see
    hosts/prompts.py); routers. freeze_embeddings: of the
    backbone, whatever the strategy (much faster on a CPU). sampling: how often each task comes:
    ``proportional`` to its rows, to their power 1 / ``temperature``, or ``round-robin``. weighting:
    of the losses: ``fixed``, by ``weights``, or learned from the tasks' ``uncertainty``.
    learning_rate: of the backbone; head_learning_rate: of heads; router_learning_rate: of routers
    and their units. The other fields are those of a recipe of one task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: Count | None = None
    batch_size: Count = 32
    accumulate: Count = 1
    strategy: Strategy = "full"
    blocks: Count = 2
    named: tuple[str, ...] = ()
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    unfreeze: Share = 0.3
    inner: Rate = 0.2
    rank: Count = 8
    prompt_tokens: Count = 16
    freeze_embeddings: bool = False
    sampling: Sampling = "temperature"
    temperature: Annotated[float, Field(ge=1.0)] = 2.0
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    weights: dict[str, Rate] = {}
    learning_rate: Rate = 3e-4
    head_learning_rate: Rate = 1e-3
    router_learning_rate: Rate = 1e-3
    weight_decay: Rate = 0.01
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.06
    clip: Rate = 1.0
    dropout: Share | None = None
    budget: Share = 1.0
    anneal: Share = 0.5
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluate_every: Count | None = None
    patience: Count | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> TasksTrainConfig:
        if self.named and self.strategy != "partial":
            raise ValueError("named: says what learns with strategy: partial")
        if self.weights and self.weighting != "fixed":
            raise ValueError("weights: are fixed; leave them out where weighting learns them")
        return self

    def plain(self) -> TrainConfig:
        """The same for the trainer of one model."""
        shared = set(TrainConfig.model_fields) & set(type(self).model_fields)
        return TrainConfig.model_validate({name: getattr(self, name) for name in shared})


class TasksMeasureConfig(BaseModel):
    """repeats: rounds of timing. time_examples: texts that are timed; max_examples: of each task's
    test rows that are judged, None = all. transfer: trains each task alone too, and each pair, and
    tells what tasks give each other (see double/transfer.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repeats: Annotated[int, Field(ge=2)] = 7
    batch_tokens: Count = 4096
    time_examples: Count = 256
    max_examples: Count | None = None
    transfer: bool = False
