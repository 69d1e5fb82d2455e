"""What a recipe says about training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from turnout.hosts.cut import Cut

Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0.0)]
Freeze = Literal["none", "embeddings", "blocks", "host", "units"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes


class TrainConfig(BaseModel):
    """Training of the dense host and of the routed model.

    epochs: of the dense host; 0 takes it as it is, trained for this task already. routed_epochs:
    of the routed model, which starts from it (None = as many). routed_layers: the routed model
    starts from the dense host cut to these layers, as ``first-4``: where deeper ones add nothing,
    no input need run them (None = all). routed_start: ``cut`` trains that cut model first, as
    measuring does, and the routed model starts from it. max_steps: of each training. accumulate:
    batches to a step. group_by_length: a step takes rows of like length, which is fast on a CPU;
    if not, rows at random, sorted inside of a step, so that several batches to a step hold less
    padding (None = by length, unless each word is labelled: it would weigh words unevenly).
    learning_rate: of the host; routed_learning_rate: of the host in the routed model and in cut
    models, which start from the trained one (None = the same); router_learning_rate: of the
    routers. warmup: share of the steps. clip: largest norm of the
    gradient. dropout: replaces the host's dropout (0 is much faster on a CPU); None keeps it.
    attention_dropout: another rate inside of attention (0 keeps torch's fused kernel on a CPU).
    freeze: ``embeddings`` trains all but the embeddings (much faster on a CPU), ``blocks`` trains
    the head, and routers with their units, ``host`` trains only the routers and their units once
    the dense host is trained, ``units`` only the routers (adapters stay as they were loaded);
    routed_freeze: the same for the routed model alone (None = as ``freeze``). seed_phase: share of
    the steps in which the adapters, or copied experts, of a block learn as one, before each learns
    what its router sends it. budget:
    share of the work that gates learn to spend, reached after ``anneal`` of the steps, and the
    budget that a loaded model starts with. precision: ``auto`` times real steps in fp32 and bf16
    and takes the faster. evaluate_every: steps between validations; None = an epoch. patience:
    validations without a gain before training stops and the best weights come back; None = never.
    save_every: steps between checkpoints; None = an epoch; with patience, each validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: Rate = 3.0
    routed_epochs: Annotated[float, Field(gt=0)] | None = None
    routed_layers: Cut | None = None
    routed_start: Literal["dense", "cut"] = "dense"
    max_steps: Count | None = None
    batch_size: Count = 32
    accumulate: Count = 1
    group_by_length: bool | None = None
    learning_rate: Rate = 3e-4
    routed_learning_rate: Rate | None = None
    router_learning_rate: Rate = 1e-3
    weight_decay: Rate = 0.01
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.06
    clip: Rate = 1.0
    dropout: Share | None = None
    attention_dropout: Share | None = None
    freeze: Freeze = "none"
    routed_freeze: Freeze | None = None
    seed_phase: Share = 0.0
    budget: Share = 0.5
    anneal: Share = 0.5
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    activation_checkpointing: bool = False
    evaluate_every: Count | None = None
    patience: Count | None = None
    save_every: Count | None = None
    tensorboard: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _trains(self) -> TrainConfig:
        if self.epochs == 0 and self.routed_epochs is None:
            raise ValueError("epochs: 0 needs routed_epochs, which is taken from it otherwise")
        if self.routed_start == "cut" and self.routed_layers is None:
            raise ValueError("routed_start: cut needs routed_layers, which names the cut model")
        return self

    def second(self) -> TrainConfig:
        """The settings of what starts from the trained dense host: routed and cut models."""
        changed = {"epochs": self.routed_epochs, "learning_rate": self.routed_learning_rate}
        return self.model_copy(update={k: v for k, v in changed.items() if v is not None})

    def routed(self) -> TrainConfig:
        """The settings of the routed model."""
        freeze = self.freeze if self.routed_freeze is None else self.routed_freeze
        return self.second().model_copy(update={"freeze": freeze})
