"""What a frozen backbone makes of the training rows is made once, not in every epoch.

Where nothing in a backbone learns, is drawn or is routed, its states of a row are always the same;
heads and routing layers behind it then train on the states that were kept: of tasks on whole texts
one state a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from turnout.double.answers import padded
from turnout.double.data import asking
from turnout.execute.batches import groups_by_length, lengths_of
from turnout.execute.mode import evaluating
from turnout.hosts.tasks_model import TasksModel
from turnout.train.data import Data, listed
from turnout.train.fit import RATES
from turnout.train.prepare import head_input

MOST = 2 * 1024**3  # bytes that may be kept
BATCH_TOKENS = 4096


def is_fixed(model: TasksModel) -> bool:
    """Are the states of a row the same in every step."""
    routing: Any = getattr(model, "turnout", None)
    inside = routing is not None and any(site.kind != "output" for site in routing.sites)
    learns = any(parameter.requires_grad for parameter in model.backbone.parameters())
    around = any(each is not None for each in (model.case, model.prompt, model.bridge))
    return not (inside or learns or around or _is_random(model.backbone))


def _is_random(backbone: nn.Module) -> bool:
    rates = [getattr(m, name, 0.0) for m in backbone.modules() for name in RATES]
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in backbone.modules())
    return drops or any(isinstance(rate, float) and rate > 0 for rate in rates)


def states_of(model: TasksModel, data: Mapping[str, Data]) -> dict[str, list[Tensor]]:
    """By task the states of its training rows, (T, D), or (1, D) where a head reads whole texts.
    Tasks whose rows change from epoch to epoch have none; too many to keep are none at all."""
    fixed = {name: each for name, each in data.items() if each.task.fixed}
    heads: Any = model.heads
    whole = {name for name in fixed if not heads[name].config.per_token}
    numbers = sum(
        len(each.train) if name in whole else sum(map(len, each.train["input_ids"]))
        for name, each in fixed.items()
    )
    if numbers * model.config.get_text_config().hidden_size * 4 > MOST:
        return {}
    return {name: _states(model, name, each, name in whole) for name, each in fixed.items()}


@torch.no_grad()
def _states(model: TasksModel, name: str, data: Data, whole: bool) -> list[Tensor]:
    rows = listed(data.train)
    found: list[Any] = [None] * len(rows)
    with evaluating(model), asking(model, name):
        for group in groups_by_length(lengths_of(rows), BATCH_TOKENS):
            inputs = padded([rows[i] for i in group], data.tokenizer, model.device)
            state_BTD, _ = head_input(model, inputs)
            for place, state_TD, mask_T in zip(
                group, state_BTD, inputs["attention_mask"], strict=True
            ):
                own = state_TD if whole else state_TD[mask_T.bool()]
                found[place] = own.float().cpu().clone()
    return found
