"""The flow of a new pass: what is known of it before its first block runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from turnout.errors import UserError
from turnout.execute.writing import read_past, read_past_mask
from turnout.flow import Flow
from turnout.hosts.read_out import read_out

if TYPE_CHECKING:
    from turnout.execute.routing import Routing


def new_flow(routing: Routing, model: nn.Module, inputs: dict[str, Any]) -> Flow:
    """The flow of a pass of a model with these inputs."""
    training, writing = model.training, routing.writing
    if writing is not None:
        seed = writing.seed
        if (mask_BT := writing.mask_BT(inputs)) is not None:
            inputs["attention_mask"] = mask_BT
    elif routing.seed is None or training:
        seed = int(torch.randint(0, 2**62, ()).item())
    else:
        seed = routing.seed
    flow = Flow(inputs, seed, routing.budget, training, partial(token_mask, routing, model, inputs))
    first = first_tensor(inputs)
    flow.task_B = _asked(routing, model, inputs, first)
    flow.noise = routing.noise_scale if routing.noise else 0.0
    if first is None:
        return flow
    batch = len(first)
    if writing is not None:
        flow.known_keys_B = writing.keys_B(batch)
    flow.budget_B = _budgets(routing, batch, first.device)
    if decoder := routing.stacks.get("decoder"):
        flow.past = read_past(inputs)
        flow.past_mask = mask_BT = read_past_mask(inputs, decoder.mask, flow.past)
        if flow.past and mask_BT is None:
            flow.past_B = torch.full((batch,), flow.past, device=first.device)
        elif flow.past and mask_BT is not None:
            flow.past_B = mask_BT[:, : flow.past].long().sum(1)
        flow.read_out = partial(read_out, model, decoder)
    return flow


def _budgets(routing: Routing, batch: int, device: torch.device) -> Tensor | None:
    """A budget for each row of a pass; None = one for all."""
    if routing.budget_B is None:
        return None
    count = len(routing.budget_B)
    if batch % count or (routing.writing is None and batch != count):
        raise UserError(f"{count} budgets are set for a batch of {batch}")
    return routing.budget_B.to(device).repeat_interleave(batch // count)


def _asked(
    routing: Routing, model: nn.Module, inputs: Mapping[str, Any], first: Tensor | None
) -> Tensor | None:
    """The task of each sequence, from ``task_ids`` or ``task``; None = nobody says. first: an input
    with the batch."""
    ids = inputs.get("task_ids")
    task = routing.task or getattr(model, "task", None)
    if ids is None and task is not None and first is not None:
        if task not in routing.tasks:
            raise UserError(
                f"task {task!r} is none of this model's: {', '.join(routing.tasks) or '-'}"
            )
        return torch.full((len(first),), routing.tasks.index(task), device=first.device)
    if ids is None:
        return None
    if first is None or ids.shape != (len(first),):
        raise UserError(f"task_ids must be one a sequence, got {tuple(ids.shape)}")
    if bool((ids < 0).any()) or bool((ids >= len(routing.tasks)).any()):
        raise UserError(
            f"task_ids must be places in the tasks of this model, 0 to {len(routing.tasks) - 1}: "
            f"{', '.join(routing.tasks) or '(it has none)'}"
        )
    return ids


def token_mask(
    routing: Routing,
    model: nn.Module,
    inputs: Mapping[str, Any],
    stack: str,
    batch: int,
    length: int,
) -> Tensor | None:
    """The bool (B, T) mask of a stack's real tokens; None when all are, or when the inputs hold
    no mask that fits."""
    kind = routing.stacks[stack]
    mask = inputs.get(kind.mask) if kind.mask else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != batch:
        return None
    if kind.mask_method is not None:
        base: Any = model.base_model
        mask = getattr(base, kind.mask_method)(length, mask)
    if before := getattr(getattr(model, "prompt", None), "states", 0):  # of a prompt
        mask = torch.cat([mask.new_ones(batch, before), mask], 1)
    if mask.shape[1] < length:
        return None
    mask = mask[:, mask.shape[1] - length :].bool()
    return None if bool(mask.all()) else mask


def first_tensor(inputs: Mapping[str, Any]) -> Tensor | None:
    """One whose first dimension is the batch: of encoded texts too, that a decoder goes on from."""
    for value in inputs.values():
        if isinstance(value, Tensor) and value.ndim:
            return value
        if isinstance(found := getattr(value, "last_hidden_state", None), Tensor):
            return found
    return None
