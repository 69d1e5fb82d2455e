"""The attention function of hosts whose routers look at attention or choose heads, or whose logits
get noise.

Registered in Transformers' own table of attention functions, so queries and keys are seen as the
host uses them (rotated, with position bias, grouped), whatever the family. It calls the host's
function and, where the block is watched, notes how much attention each token received; where
heads are routed, only those that run attend.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from turnout.errors import UserError
from turnout.execute.handle import BlockHandle
from turnout.execute.noise import perturb_logits
from turnout.execute.scope import is_reference

NAME = "turnout_sdpa"
SHORT = 192  # keys


def attend(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """Scaled dot-product attention of torch, watched."""
    handle: BlockHandle | None = module.__dict__.get("_turnout_attends")
    if handle is not None and handle.watch and handle.stream.flow is not None:
        scale = kwargs.get("scaling") or query_BHQD.shape[-1] ** -0.5
        bias = kwargs.get("position_bias")
        with torch.no_grad():
            _note(handle, query_BHQD, key_BGKD, attention_mask, bias, scale)
    if handle is not None and handle.logit_noise is not None:
        query_BHQD, kwargs = perturb_logits(
            handle.logit_noise, handle.stream, module, query_BHQD, key_BGKD, attention_mask, kwargs
        )
    inputs = (module, query_BHQD, key_BGKD, value_BGKD, attention_mask)
    plan = None if handle is None else handle.scopes["attention"].heads
    with _kernel(query_BHQD, key_BGKD):
        if plan is None:
            return sdpa_attention_forward(*inputs, **kwargs)
        if is_reference():
            out_BTHD, _ = sdpa_attention_forward(*inputs, **kwargs)
            return plan.weigh(out_BTHD), None
        return plan.attend(*inputs, **kwargs), None


def _kernel(query: Tensor, key: Tensor) -> AbstractContextManager[Any]:
    """Plain products where bf16 trains on a CPU: on short texts the backward pass of the fused
    kernel takes two to four times as long there."""
    trains = torch.is_grad_enabled() and query.requires_grad
    slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and key.shape[2] <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if trains and slow else nullcontext()


def _note(
    handle: BlockHandle,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> None:
    """Write what tokens received into the memory of the pass, (B, T): see ``received``. Only the
    queries that count are multiplied, as many a sequence as the fullest one has."""
    flow, stream = handle.stream.flow, handle.stream
    assert flow is not None
    batch, length = flow.trace.shape_BT[handle.stack]
    valid_BT = flow.trace.mask_BT[handle.stack]
    if valid_BT is None:
        valid_BT = torch.ones(batch, length, dtype=torch.bool, device=query_BHQD.device)
    here_BT = whole_BT = valid_BT if stream.keep_B is None else valid_BT[stream.keep_B]
    first_BT = here_BT & (here_BT.cumsum(1) == 1)
    if stream.short is not None:
        here_BT = stream.short.valid_BS
        first_BT = first_BT.gather(1, stream.short.place_BS)
    asks_BT = here_BT
    index_N = handle.scopes["attention"].index_N
    if index_N is not None:  # skipped tokens ask nothing
        ran = torch.zeros(here_BT.numel(), dtype=torch.bool, device=here_BT.device)
        ran[index_N] = True
        asks_BT = here_BT & ran.view_as(here_BT)
    if handle.watch == "class":
        asks_BT = asks_BT & first_BT
    most = int(asks_BT.sum(1).max()) if asks_BT.numel() else 0
    row_BQ = asks_BT.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    heads, width = query_BHQD.shape[1], query_BHQD.shape[-1]
    at = row_BQ[:, None, :, None].expand(-1, heads, -1, width)
    query_BHQD, asks_BQ = query_BHQD.gather(2, at), asks_BT.gather(1, row_BQ)
    mask, bias = _rows(mask, row_BQ), _rows(bias, row_BQ)
    found_BT = received(query_BHQD, key_BGKD, here_BT, asks_BQ, mask, bias, scale)
    if stream.short is not None:  # as if the tokens that were removed were there, and got nothing
        scale_B1 = whole_BT.sum(1, keepdim=True) / here_BT.sum(1, keepdim=True)
        none_BT = found_BT.new_zeros(len(found_BT), length)
        found_BT = none_BT.scatter(1, stream.short.place_BS, found_BT * scale_B1)
    # where nobody asked, nothing is known
    found_BT = torch.where(asks_BT.any(1, keepdim=True), found_BT, whole_BT.to(found_BT.dtype))
    if stream.keep_B is not None:
        found_BT = valid_BT.to(found_BT.dtype).index_copy(0, stream.keep_B, found_BT)
    flow.memory[(f"{handle.stack}.{handle.layer}", "received")] = found_BT


def received(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    valid_BT: Tensor,
    asks_BQ: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Attention that each token received, as a multiple of an equal share, (B, T), float32.

    The softmax over keys, averaged over heads and over the queries that count (``asks_BQ``), times
    the number of real tokens: 1 on average over them. Padding has 0. mask, bias: as the host's
    attention gets them, (1|B, 1|H, Q, T), bool or added.
    """
    heads, groups = query_BHQD.shape[1], key_BGKD.shape[1]
    key_BHKD = key_BGKD.repeat_interleave(heads // groups, 1)
    logit_BHQT = (query_BHQD @ key_BHKD.transpose(-1, -2)).float() * scale
    if bias is not None:
        logit_BHQT = logit_BHQT + bias.float()
    if mask is not None and mask.dtype != torch.bool:
        logit_BHQT = logit_BHQT + mask.float()
    elif mask is not None:
        logit_BHQT = logit_BHQT.masked_fill(~mask, -math.inf)
    logit_BHQT = logit_BHQT.masked_fill(~valid_BT[:, None, None], -math.inf)
    mean_BQT = logit_BHQT.softmax(-1).mean(1).nan_to_num()
    asks = asks_BQ.float()
    share_BT = (mean_BQT * asks[:, :, None]).sum(1) / asks.sum(1, keepdim=True).clamp_min(1.0)
    return share_BT * valid_BT.sum(1, keepdim=True)


def _rows(value: Tensor | None, row_BQ: Tensor) -> Tensor | None:
    """The rows of a mask or bias (1|B, 1|H, Q, T) that belong to some queries of each sequence."""
    if value is None or value.shape[2] == 1:
        return value
    value = value.expand(len(row_BQ), *value.shape[1:])
    at = row_BQ[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[3])
    return value.gather(2, at)


def watch_attention(model: PreTrainedModel) -> str:
    """Put the watched function into a model; returns the name of the one that was there."""
    before = str(model.config._attn_implementation)
    if before not in ("sdpa", "eager") or not model._can_set_attn_implementation():
        raise UserError(
            "a router looks at attention or chooses heads, or noise is on its logits, but "
            f"{type(model).__name__} attends by {before!r}: load the host with "
            "attn_implementation='sdpa'"
        )
    model.set_attn_implementation(NAME)
    return before


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
