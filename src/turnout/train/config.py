"""What a recipe says about training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TrainConfig(BaseModel):
    """Training of the dense host and of the routed model.

    epochs: of the dense host; routed_epochs: of the routed model, which starts from it (None = as
    many). freeze: ``embeddings`` trains all but the embeddings (much faster on a CPU), ``host``
    trains only the routers. budget: share of the work that gates learn to spend, reached after
    ``anneal`` of the steps. dropout: replaces the host's dropout (0 is much faster on a CPU);
    None keeps it. precision: ``auto`` measures fp32 and bf16 on this machine and takes the faster.
    patience: evaluations without a gain before training stops early; None = never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[float, Field(gt=0)] = 3.0
    routed_epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Count | None = None
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: Rate = 3e-4
    router_learning_rate: Rate = 1e-3
    weight_decay: Rate = 0.01
    warmup: Share = 0.06
    clip: Rate = 1.0
    dropout: Share | None = None
    freeze: Literal["none", "embeddings", "host"] = "none"
    budget: Share = 0.5
    anneal: Share = 0.5
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    activation_checkpointing: bool = False
    evaluate_every: Count | None = None
    patience: Count | None = None
    save_every: Count | None = None
    tensorboard: bool = False
    seed: int = 0
