"""The lowest budget at which a routed model provably stays near what it does with everything on.

Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052) as in CALM (Schuster et al. 2022, arXiv
2207.07061): budgets are tested from high to low, each as the hypothesis that its risk is above
epsilon, and the first that cannot be refused ends the row (fixed-sequence testing). With chance at
least 1 - delta over the rows, which must be of the kind that the model will meet and none that it
or its dial learned from, the risk of every budget that passed is at most epsilon. P values are
Hoeffding-Bentkus (Bates et al. 2021, arXiv 2101.02703). Symbols: their lambda is our budget, their
loss L a row's risk, R its mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.execute.batches import Collate, Row, groups_by_length, inputs_of, lengths_of
from turnout.execute.mode import evaluating
from turnout.execute.routing import Routing
from turnout.flow import IGNORED

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
# logits with the budget, logits with everything on, bool mask of tokens or None -> (B,) in 0..1
Risk = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Tested:
    """One budget: its mean risk over the rows and the p value that its risk is above epsilon."""

    budget: float
    risk: float
    p_value: float


@dataclass(frozen=True)
class RiskBound:
    """budget: the lowest one that passed; 1 = none did. tested: in their order, the one that failed
    included. rows: how many were read."""

    budget: float
    epsilon: float
    delta: float
    rows: int
    tested: tuple[Tested, ...]


def differs(routed: Tensor, whole: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The share of a row's answers that are not those with everything on, (B,): 0 or 1 for a label
    of the whole text, else of its real tokens (for a language model, of the next tokens)."""
    other = (routed.argmax(-1) != whole.argmax(-1)).float()
    if other.ndim == 1:
        return other
    if mask_BT is None or mask_BT.shape != other.shape:
        return other.flatten(1).mean(1)
    kept = mask_BT.float()
    return (other * kept).sum(1) / kept.sum(1).clamp_min(1.0)


def bound_risk(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    *,
    epsilon: float,
    delta: float = 0.05,
    budgets: Sequence[float] = BUDGETS,
    risk: Risk = differs,
    batch_tokens: int = 4096,
) -> RiskBound:
    """Test budgets on encoded rows that nothing was learned from.

    risk: of each row of a batch, 0..1 (see ``Risk``). The model and its dial are left as they were:
    set ``model.turnout.budget`` to the result. Raises UserError for an unrouted model, no rows, or
    numbers out of their range.
    """
    routing: Any = getattr(model, "turnout", None)
    if not isinstance(routing, Routing):
        raise UserError("bound_risk needs a routed model; call turnout.install(model, ...) first")
    if not len(rows):
        raise UserError("bound_risk needs at least one row that nothing was learned from")
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise UserError(f"{name} must lie between 0 and 1, got {value!r}")
    order = sorted({float(budget) for budget in budgets}, reverse=True)
    if not order or not 0.0 <= order[-1] <= order[0] < 1.0:
        raise UserError(f"budgets must be at least 0 and below 1, got {list(budgets)}")
    tested: list[Tested] = []
    passed = 1.0
    for budget in order:
        mean = _mean_risk(model, rows, collate, budget, risk, batch_tokens)
        tested.append(Tested(budget, mean, hoeffding_bentkus(mean, len(rows), epsilon)))
        if tested[-1].p_value > delta:
            break
        passed = budget
    return RiskBound(passed, epsilon, delta, len(rows), tuple(tested))


def hoeffding_bentkus(mean: float, rows: int, epsilon: float) -> float:
    """An upper bound on the chance to see a mean risk this low over so many rows, if the risk were
    above epsilon: the smaller of Hoeffding's and Bentkus' bounds."""
    below = min(mean, epsilon)
    apart = 0.0 if below == 0.0 else below * math.log(below / epsilon)
    apart += (1 - below) * math.log((1 - below) / (1 - epsilon))
    bentkus = math.e * float(binom.cdf(math.ceil(rows * mean), rows, epsilon))
    return min(1.0, math.exp(-rows * apart), bentkus)


@torch.inference_mode()
def _mean_risk(
    model: PreTrainedModel,
    rows: Sequence[Row],
    collate: Collate,
    budget: float,
    risk: Risk,
    batch_tokens: int,
) -> float:
    """Over all rows. No logits are kept from one batch to the next."""
    routing: Any = model.turnout
    total = 0.0
    with evaluating(model):
        for group in groups_by_length(lengths_of(rows), batch_tokens):
            inputs = inputs_of(model, [rows[i] for i in group], collate)
            labels = inputs.pop("labels", None)
            with routing.at(1.0):
                whole = model(**inputs).logits
            with routing.at(budget):
                routed = model(**inputs).logits
            mask = inputs.get("attention_mask")
            if isinstance(labels, Tensor) and labels.shape == routed.shape[:-1]:
                mask = labels != IGNORED
            found_B = risk(routed, whole, None if mask is None else mask.bool())
            if bool((found_B < 0).any()) or bool((found_B > 1).any()):
                raise UserError("bound_risk: the risk of a row must be a number from 0 to 1")
            total += float(found_B.sum())
    return total / len(rows)
