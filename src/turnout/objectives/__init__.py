"""Pure functions of routes and outputs to a scalar, and the weights that a recipe gives them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from turnout.objectives.balance import balance as balance
from turnout.objectives.budget import budget as budget
from turnout.objectives.distill import distill as distill
from turnout.objectives.distill import distill_hidden as distill_hidden
from turnout.objectives.exits import exits as exits
from turnout.objectives.score_function import loss_per_sequence as loss_per_sequence
from turnout.objectives.score_function import score_function as score_function
from turnout.objectives.z_loss import z_loss as z_loss

Weight = Annotated[float, Field(ge=0.0)]


class ObjectivesConfig(BaseModel):
    """Weights of the training objectives; 0 leaves one out.

    task: the host's own loss. distill: answers of the dense host. hidden: last hidden states of
    the dense host (runs it in each step). budget: distance from the work budget, for routers that
    learn when to skip. balance: use units alike. exits: heads of an exit router.
    score_function: a learned jump distribution. policy: routers that learn from a reward. z: small
    logits of gates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Weight = 1.0
    distill: Weight = 1.0
    hidden: Weight = 0.0
    budget: Weight = 10.0
    balance: Weight = 0.0
    exits: Weight = 1.0
    score_function: Weight = 1.0
    policy: Weight = 1.0
    z: Weight = 0.0
