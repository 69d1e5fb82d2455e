"""Move rows (tokens) to where they are computed and back: packed flat, without padding.

Where gradients are kept an index holds unique positions in the flattened (B * T) rows, so that a
gather's gradient is a plain copy back, without autograd's general (adding, slow) scatter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Each number of rows in bf16 is a product of its own to oneDNN, which takes 0.4 ms to prepare it,
# as long as some hundred rows take. So numbers of rows are rounded up to a multiple of this there.
STEP = 32


def prepares(like: Tensor) -> bool:
    """Is every number of rows prepared for anew where this is multiplied."""
    dtype = like.dtype
    if like.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    return dtype == torch.bfloat16


def round_up(rows: int) -> int:
    """The next multiple of STEP."""
    return -(-rows // STEP) * STEP


def rounded(index_N: Tensor, like: Tensor) -> Tensor:
    """An index of rows of ``like`` with its last row again, up to a round number, where that pays.
    Whoever uses it cuts the surplus off, or writes the same row again."""
    short = round_up(len(index_N)) - len(index_N)
    if not short or not len(index_N) or not prepares(like):
        return index_N
    return torch.cat([index_N, index_N[-1:].expand(short)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, index_N: Tensor) -> Tensor:
        ctx.save_for_backward(index_N)
        ctx.rows = x_RD.shape[0]
        return x_RD.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index_N,) = ctx.saved_tensors
        grad_ND = grads[0]
        full = grad_ND.new_zeros((ctx.rows, *grad_ND.shape[1:]))
        return full.index_copy_(0, index_N, grad_ND), None


def gather(x_BTD: Tensor, index_N: Tensor) -> Tensor:
    """The active rows of (B, T, D) as (N, D)."""
    flat = x_BTD.reshape(-1, *x_BTD.shape[2:])
    return _Gather.apply(flat, index_N)  # type: ignore[return-value]


def gather_round(x_BTD: Tensor, index_N: Tensor) -> Tensor:
    """``gather``, with more rows up to a round number where that pays: the last one again, or where
    gradients are kept, zeros."""
    more = rounded(index_N, x_BTD)
    if more is index_N or not torch.is_grad_enabled():
        return gather(x_BTD, more)
    return F.pad(gather(x_BTD, index_N), (0, 0, 0, len(more) - len(index_N)))


def scatter(rows_ND: Tensor, index_N: Tensor, like_BTD: Tensor) -> Tensor:
    """(N, D) rows into zeros of the leading shape (B, T) of ``like_BTD``."""
    batch, length = like_BTD.shape[:2]
    full = rows_ND.new_zeros((batch * length, rows_ND.shape[-1]))
    return full.index_copy(0, index_N, rows_ND).view(batch, length, -1)


def overlay(rows_ND: Tensor, index_N: Tensor, base_BTD: Tensor) -> Tensor:
    """``base_BTD`` with the rows at the index replaced; the base is left as it was."""
    flat = base_BTD.reshape(-1, base_BTD.shape[-1])
    return flat.index_copy(0, index_N, rows_ND.to(flat.dtype)).view(base_BTD.shape)


def modulate(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Scale the change a unit made: out + (w - 1)(out - x). A weight of 1 is exact, bit for bit."""
    return out + (weight - 1).to(out.dtype) * (out - x)


def is_weighted(weight: Tensor) -> bool:
    """Must weights be multiplied: they carry a gradient, or are not all 0 or 1."""
    if weight.requires_grad and torch.is_grad_enabled():
        return True
    return not bool(((weight == 0) | (weight == 1)).all())
