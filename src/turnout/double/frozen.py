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
    """By task what its head needs of its training rows, (T, L, D) of L layers, T = 1 where a head
    reads whole texts. Tasks whose rows change from epoch to epoch have none, and those have none
    that would be too much to keep: the largest go first."""
    found: dict[str, list[Tensor]] = {}
    room = MOST
    fixed = {name: each for name, each in data.items() if each.task.fixed}
    sizes = {name: _bytes(model, name, each) for name, each in fixed.items()}
    for name in sorted(fixed, key=lambda name: sizes[name]):
        if sizes[name] <= room:
            room -= sizes[name]
            found[name] = _states(model, name, fixed[name])
    return found


def _bytes(model: TasksModel, name: str, data: Data) -> int:
    head: Any = model.heads[name]
    tokens = sum(map(len, data.train["input_ids"])) if head.config.per_token else len(data.train)
    return 4 * tokens * max(1, head.config.layers) * model.config.get_text_config().hidden_size


@torch.no_grad()
def _states(model: TasksModel, name: str, data: Data) -> list[Tensor]:
    rows = listed(data.train)
    found: list[Any] = [None] * len(rows)
    with evaluating(model), asking(model, name):
        for group in groups_by_length(lengths_of(rows), BATCH_TOKENS):
            inputs = padded([rows[i] for i in group], data.tokenizer, model.device)
            state_BTLD = model(**inputs, keep=True).states
            for place, state_TLD, mask_T in zip(
                group, state_BTLD, inputs["attention_mask"], strict=True
            ):
                own = state_TLD[mask_T.bool()] if len(state_TLD) == len(mask_T) else state_TLD
                found[place] = own.float().cpu().clone()
    return found
