"""The matrices of a host's linear layers, whichever way round they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from turnout.errors import UserError


def matrix_of(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias of a linear layer. Raises UserError for anything else."""
    if not isinstance(module, nn.Linear | Conv1D):
        raise UserError(
            f"experts are slices of linear layers; found {type(module).__name__}: merge adapters "
            "first, or route the whole ffn"
        )
    host: Any = module
    return (host.weight.t() if isinstance(module, Conv1D) else host.weight), host.bias


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
