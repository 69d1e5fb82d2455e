"""One matrix product a group of rows: rows sorted by expert against the matrices of the experts.

Two ways, whichever is faster here: a loop of products written into one result, or torch's grouped
product. They are timed once for each kind of input (device, number format, sizes, with a backward
pass or without), on real data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.execute.rows import prepares, round_up

Way = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
_chosen: dict[tuple[Any, ...], Way] = {}
ROUNDS = 2
FEW = 64  # rows below which timing tells nothing


class _Loop(torch.autograd.Function):
    """Products of slices, written in place: no list of parts is ever joined."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, weight_EFD: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x_PD, weight_EFD)
        ctx.counts = counts
        out_PF = x_PD.new_empty(len(x_PD), weight_EFD.shape[1])
        for expert, start, end in _windows(counts, x_PD):
            torch.mm(x_PD[start:end], weight_EFD[expert].t(), out=out_PF[start:end])
        return out_PF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_PD, weight_EFD = ctx.saved_tensors
        grad_PF = grads[0].contiguous()
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x_PD)
            for expert, start, end in _windows(ctx.counts, x_PD):
                torch.mm(grad_PF[start:end], weight_EFD[expert], out=grad_x[start:end])
        if ctx.needs_input_grad[1]:
            grad_weight = weight_EFD.new_zeros(weight_EFD.shape)
            for expert, (start, end) in enumerate(_spans(ctx.counts)):
                if start < end:
                    torch.mm(grad_PF[start:end].t(), x_PD[start:end], out=grad_weight[expert])
        return grad_x, grad_weight, None


def loop(x_PD: Tensor, weight_EFD: Tensor, counts: Sequence[int]) -> Tensor:
    """A product a group, one after the other."""
    return _Loop.apply(x_PD, weight_EFD, tuple(counts))  # type: ignore[return-value]


def torch_grouped(x_PD: Tensor, weight_EFD: Tensor, counts: Sequence[int]) -> Tensor:
    """torch's grouped product (torch 2.10 or newer, rows of a multiple of 16 bytes)."""
    ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=x_PD.device)
    return F.grouped_mm(x_PD, weight_EFD.transpose(-2, -1), offs=ends)


def grouped(x_PD: Tensor, weight_EFD: Tensor, counts: Sequence[int]) -> Tensor:
    """x W_e^T for each row and the matrix of its group: (P, F).

    x_PD: rows, sorted by group. counts: rows of each group, which add up to P. Groups may be empty.
    """
    kind = x_PD.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return grouped(x_PD.to(dtype), weight_EFD.to(dtype), counts)
    if len(x_PD) < FEW or not _can_group(x_PD, weight_EFD):
        return loop(x_PD, weight_EFD, counts)
    learns = torch.is_grad_enabled() and (x_PD.requires_grad or weight_EFD.requires_grad)
    key = (kind, x_PD.dtype, *weight_EFD.shape, len(x_PD).bit_length(), learns)
    if key not in _chosen:
        _chosen[key] = _faster(x_PD.detach(), weight_EFD.detach(), counts, learns)
    return _chosen[key](x_PD, weight_EFD, counts)


def _can_group(x_PD: Tensor, weight_EFD: Tensor) -> bool:
    """Does torch's product take these: one number format, aligned rows of rows and matrices (which
    may be slices of one matrix)."""
    steps = (x_PD.shape[1], weight_EFD.shape[1], *weight_EFD.stride()[:2])
    aligned = all(step * x_PD.element_size() % 16 == 0 for step in steps)
    same = x_PD.dtype == weight_EFD.dtype and x_PD.dtype != torch.float64
    kind = x_PD.device.type
    there = kind == "cpu" or (
        kind == "cuda" and torch.cuda.get_device_capability(x_PD.device)[0] >= 8
    )
    dense = weight_EFD.stride(2) == 1
    return there and hasattr(F, "grouped_mm") and aligned and same and dense


def _faster(x_PD: Tensor, weight_EFD: Tensor, counts: Sequence[int], learns: bool) -> Way:
    """The way that is faster on these tensors, which carry no graph."""
    x_PD, weight_EFD = x_PD.requires_grad_(learns), weight_EFD.requires_grad_(learns)
    best: dict[Way, float] = {}

    def kept(saved: Tensor) -> Tensor:
        return saved

    def once(way: Way) -> None:
        # hooks of our own: those of activation checkpointing would count what is saved here
        hooks = torch.autograd.graph.saved_tensors_hooks(kept, kept)
        with hooks, torch.set_grad_enabled(learns):
            out = way(x_PD, weight_EFD, counts)
            if learns:
                torch.autograd.grad(out, (x_PD, weight_EFD), torch.ones_like(out))

    for way in (loop, torch_grouped):
        once(way)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            once(way)
            if x_PD.is_cuda:
                torch.cuda.synchronize()
            best[way] = min(best.get(way, float("inf")), time.perf_counter() - start)
    return min(best, key=lambda way: best[way])


def _spans(counts: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise([0, *accumulate(counts)]))


def _windows(counts: Sequence[int], like: Tensor) -> Iterator[tuple[int, int, int]]:
    """Group, first and last row of each group that has rows; where that pays, up to a round number
    of them: the groups that follow write over what is not the group's own."""
    total, rounds = sum(counts), prepares(like)
    for group, (start, end) in enumerate(_spans(counts)):
        if start < end:
            more = start + round_up(end - start) if rounds else end
            yield group, start, more if more <= total else end
