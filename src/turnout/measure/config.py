"""What a recipe says about measuring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from turnout.hosts.cut import Cut

Budget = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(gt=0)]


class MeasureConfig(BaseModel):
    """Measurement of the dense host, the routed model, random routes and cut models.

    budgets: shares of the routed work to measure at. static: cut models to compare with,
    ``first-N`` or ``last-N`` layers, or ``every-other``; None = the first half, the first third and
    every other layer, where the host can be cut. repeats: rounds of timing. dtype: ``auto``
    measures fp32 and bf16 on this machine and takes the faster. batch_tokens: tokens in a batch,
    padding included. bootstrap: draws for the intervals. max_examples: of the test set; None = all.
    time_examples: how many of those are timed in each round; None = all. noise_scales: scales of
    trained noise to measure the routed model at, at its own budget; a model with noise and without
    routers is measured at 1 where none is named. noise_draws: passes with noise of their own that
    quality is averaged over.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    budgets: Annotated[list[Budget], Field(min_length=1)] = [0.75, 0.5, 0.35, 0.25]
    static: list[Cut] | None = None
    repeats: Count = 7
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    batch_tokens: Count = 4096
    bootstrap: Count = 1000
    max_examples: Count | None = None
    time_examples: Count | None = None
    noise_scales: list[Annotated[float, Field(ge=0.0)]] = []
    noise_draws: Annotated[int, Field(ge=3)] = 3
