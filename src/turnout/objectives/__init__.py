"""Pure functions of routes and outputs to a scalar, and the weights that a recipe gives them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from turnout.objectives.balance import balance as balance
from turnout.objectives.budget import budget as budget
from turnout.objectives.distill import distill as distill
from turnout.objectives.distill import distill_hidden as distill_hidden
from turnout.objectives.exits import exits as exits
from turnout.objectives.kl import consistency as consistency
from turnout.objectives.kl import gaussian_kl as gaussian_kl
from turnout.objectives.kl import kl as kl
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
    logits of gates. kl: beta, the weight of trained noise's divergence from its prior, in nats over
    all of its elements (1 / number of training rows is the evidence lower bound); it rises from 0
    over the first part of training that ``kl_anneal`` says. free_bits: nats of each element that
    are not pulled to the prior. consistency: two passes with noise (and routes) of their own answer
    alike; it runs the model twice.
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
    kl: Weight = 1e-4
    kl_anneal: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    free_bits: Weight = 0.0
    consistency: Weight = 0.0
