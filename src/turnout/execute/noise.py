"""Where trained noise meets a running block: the end of the feed-forward network, the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import UserError
from turnout.execute.scope import Scope, Stream, is_reference
from turnout.flow import Flow
from turnout.noise.attention import AttentionNoise
from turnout.noise.base import Noise
from turnout.noise.ffn import FfnNoise


class NoiseDial:
    """The part of a model's routing that is about noise. noise: its modules by block and kind."""

    noise: nn.ModuleDict
    spec: dict[str, Any]

    def all_noise(self) -> list[Noise]:
        """The noise of every block that has some, in their order."""
        return list(self.noise.values())  # type: ignore[arg-type]

    @property
    def noise_scale(self) -> float:
        """The dial of the noise: 1 = as it was trained, 0 = the host, bit for bit."""
        return self.spec.get("noise_scale", 1.0)

    @noise_scale.setter
    def noise_scale(self, value: float) -> None:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not isfinite(float(value)) or float(value) < 0.0:
            raise UserError(f"noise_scale must be a number from 0 up, got {value!r}")
        self.spec["noise_scale"] = float(value)

    @contextmanager
    def noisy_at(self, scale: float) -> Iterator[None]:
        """Scale the noise inside, then go back to the earlier scale."""
        before = self.noise_scale
        self.noise_scale = scale
        try:
            yield
        finally:
            self.noise_scale = before

    @property
    def is_noisy(self) -> bool:
        """Does another seed give other answers, because there is noise that is not turned off."""
        return bool(len(self.noise)) and self.noise_scale > 0


@dataclass(eq=False)
class NoiseHandle:
    """What the end of a noisy feed-forward network knows."""

    noise: FfnNoise
    scope: Scope


class NoisyLeaf(nn.Module):
    """Mixin of the module that ends a feed-forward network. It stands below the roles of leaves, so
    that noise is added to the rows that run, before weights and scattering."""

    _turnout_noise: NoiseHandle

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = super().forward(*args, **kwargs)
        noise, scope = self._turnout_noise.noise, self._turnout_noise.scope
        stream, flow = scope.stream, scope.stream.flow
        if flow is None:  # a partial pass
            return out
        stack, index_R = noise.place.stack, None if is_reference() else scope.index_N
        if noise.meter is not None:
            rows_RD = out.reshape(-1, out.shape[-1])
            noise.measure(rows_RD[_rows(_valid(flow, stack, stream, out.device), index_R)])
            return out
        if not flow.noise:
            return out
        batch, length = flow.trace.shape_BT[stack]
        keys_BT = noise.keys_BT(flow, flow.place_of(batch, length, out.device, stack))
        return noise.perturb(out, _rows(picked(keys_BT, stream), index_R), flow.noise)


def perturb_logits(
    noise: AttentionNoise,
    stream: Stream,
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """The queries and options of an attention function with which it attends with noise.

    Noise goes in as a bias of the logits, which the host's function joins with its mask; the mean
    goes into the queries. mask, options: as that function gets them.
    """
    flow = stream.flow
    if flow is None or not (flow.noise or noise.meter is not None):
        return query_BHQD, options
    stack, device = noise.place.stack, query_BHQD.device
    batch, length = flow.trace.shape_BT[stack]
    keys, scale = key_BGKD.shape[2], options.get("scaling") or query_BHQD.shape[-1] ** -0.5
    before = options.get("position_bias")
    if noise.meter is not None or (flow.training and noise.ask is not None):
        seen = _seen(module, mask, _valid(flow, stack, stream, device), keys, options)
        key_BHKD = key_BGKD.repeat_interleave(query_BHQD.shape[1] // key_BGKD.shape[1], 1)
        if noise.meter is None:
            noise.note_mean(flow, query_BHQD, key_BHKD, seen, scale)
        else:
            logit_BHQK = (query_BHQD @ key_BHKD.transpose(2, 3)).float() * scale
            noise.measure(logit_BHQK if before is None else logit_BHQK + before, seen)
            return query_BHQD, options
    place_BT = flow.place_of(batch, length, device, stack)
    place_BK = flow.key_place_BK(place_BT, stack, length if stream.short else keys)
    keys_B = noise.keys_B(flow, batch, device)
    keys_B = keys_B if stream.keep_B is None else keys_B.index_select(0, stream.keep_B)
    place_BQ = picked(place_BT, stream)
    if place_BK is place_BT:
        place_BK = place_BQ
    bias = noise.bias(keys_B, place_BQ, place_BK, flow.noise)
    bias = (bias if before is None else bias + before).to(query_BHQD.dtype)
    return noise.turn(query_BHQD, flow.noise), {**options, "position_bias": bias}


def picked(value_BT: Tensor, stream: Stream) -> Tensor:
    """Of what all tokens of a pass have, that of the sequences and tokens a block runs on."""
    if stream.keep_B is not None:
        value_BT = value_BT.index_select(0, stream.keep_B)
    if stream.short is not None:
        value_BT = value_BT.gather(1, stream.short.place_BS)
    return value_BT


def _rows(value_BT: Tensor, index_R: Tensor | None) -> Tensor:
    flat = value_BT.reshape(-1)
    return flat if index_R is None else flat.index_select(0, index_R)


def _valid(flow: Flow, stack: str, stream: Stream, device: torch.device) -> Tensor:
    """Bool mask of the real tokens that a block runs on."""
    if stream.short is not None:
        return stream.short.valid_BS
    mask_BT = flow.trace.mask_BT[stack]
    if mask_BT is None:
        mask_BT = torch.ones(flow.trace.shape_BT[stack], dtype=torch.bool, device=device)
    return picked(mask_BT, stream)


def _seen(
    module: nn.Module, mask: Tensor | None, valid_BQ: Tensor, keys: int, options: dict[str, Any]
) -> Tensor:
    """Bool (B, 1|H, Q, K): the pairs of a real query and a key that it attends to."""
    length = valid_BQ.shape[1]
    seen = valid_BQ[:, None, :, None].expand(-1, 1, -1, keys)
    if mask is not None:
        return seen & (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)
    causal = options.get("is_causal")
    if (getattr(module, "is_causal", True) if causal is None else causal) and length > 1:
        return seen & torch.ones(length, keys, dtype=torch.bool, device=seen.device).tril()
    return seen
