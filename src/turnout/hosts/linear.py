"""The matrices of a host's linear layers, whichever way round they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from turnout.errors import UserError


def plain_matrix(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a linear layer; None for anything else, and for layers that
    compute in a way of their own (adapters, quantised weights)."""
    host: Any = type(module)
    while (below := host.__dict__.get("_turnout_host")) is not None:
        host = below
    if host.forward is nn.Linear.forward:
        return module.weight, module.bias
    return (module.weight.t(), module.bias) if host.forward is Conv1D.forward else None


def matrix_of(module: Any, what: str = "experts are slices of") -> tuple[Tensor, Tensor | None]:
    """As ``plain_matrix``. Raises UserError where that is None. what: who wants it, and why."""
    found = plain_matrix(module)
    if found is None:
        raise UserError(
            f"{what} plain linear layers; found {type(module).__name__}: merge adapters that are "
            "there, or load the host without quantisation"
        )
    return found


@torch.no_grad()
def reorder_rows(module: nn.Module, order: Tensor) -> None:
    """Put the outputs of a linear layer into another order, in place."""
    weight, bias = matrix_of(module)
    order = order.to(weight.device)
    weight.copy_(weight[order].clone())
    if bias is not None:
        bias.copy_(bias[order].clone())


@torch.no_grad()
def reorder_columns(module: nn.Module, order: Tensor) -> None:
    """Make a linear layer read its inputs in another order, in place."""
    weight, _ = matrix_of(module)
    weight.copy_(weight[:, order.to(weight.device)].clone())
