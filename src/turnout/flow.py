"""The state of one forward pass: what routers may look at, and where they remember.

Everything that is random in a pass is a pure function of ``Flow.seed`` and the input, so the
second run that activation checkpointing makes takes exactly the same routes, and a sequence
takes the same route alone and in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from turnout.errors import UserError
from turnout.route import Site, Trace

IGNORED = -100  # the label of a token that has none: losses and metrics pass over it
_PRIME = 1_000_003


def _signed(value: int) -> int:
    """The low 64 bits of an integer as the signed number that torch stores."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_MIX_1, _MIX_2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    moved = value >> bits
    moved &= (1 << (64 - bits)) - 1
    return moved


def hash_bits(key: Tensor, count: Tensor | int) -> Tensor:
    """64 random bits as a pure function of int64 keys and a count: number ``count`` of the
    generator SplitMix64 (Steele, Lea, Flood 2014) whose state is the key. No state of its own, the
    same on every device. Shape as ``key`` and ``count`` broadcast."""
    step = (count + 1) * _GOLDEN
    value = key + (step if isinstance(step, Tensor) else _signed(step))
    value ^= _shift(value, 30)  # in place, as memory is what this waits for
    value *= _MIX_1
    value ^= _shift(value, 27)
    value *= _MIX_2
    value ^= _shift(value, 31)
    return value


def hash_uniform(key: Tensor, *salts: int) -> Tensor:
    """Uniform numbers in [0, 1) as a pure function of int64 keys and integer salts (see
    ``hash_bits``). Shape as ``key``, float32."""
    value = key
    for salt in (*salts, 0):
        value = hash_bits(value, salt)
    return _shift(value, 40).to(torch.float32) / (1 << 24)


def hash_normal(key: Tensor, count: int, dim: int = -1) -> Tensor:
    """Standard normal numbers, ``count`` to a key, in a new dimension, float32.

    Two to 64 bits by the transform of Box and Muller (1958): half as many hashes as numbers.
    """
    key = key.unsqueeze(dim)
    shape = [1] * key.ndim
    shape[dim] = -1
    bits = hash_bits(key, torch.arange(-(-count // 2), device=key.device).view(shape))
    radius = _shift(bits, 40).to(torch.float32)
    radius = radius.add_(1.0).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    bits &= 0xFFFFFF
    angle = bits.to(torch.float32).mul_(2.0 * math.pi / (1 << 24))
    pair = [radius * angle.cos(), radius.mul_(angle.sin_())]
    return torch.cat(pair, dim).narrow(dim, 0, count)


def sequence_keys(input_ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """One int64 key a sequence, from its real tokens; padding on either side is ignored."""
    ids = input_ids_BT.long() + 1
    valid = torch.ones_like(ids) if mask_BT is None else mask_BT.long()
    place = valid.cumsum(1) * _PRIME
    mixed = (ids * _MIX_1 + place) * _MIX_2
    mixed = (mixed ^ _shift(mixed, 29)) * _GOLDEN
    return (mixed * valid).sum(1)


@dataclass(eq=False)
class Flow:
    """One forward pass of a routed model.

    inputs: the keyword arguments of the root model. seed: of everything random in this pass.
    budget: share of the routed work that may be spent, 0..1. training: of the root model.
    memory: what routers remember within the pass, keyed by (site key, name): written once per
    site, so a repeated run writes equal values.
    mask_of: how a stack's (B, T) mask is read off the inputs. known_keys_B: keys of the sequences,
    before the seed is added, when they are known already. task_B: which task each sequence asks
    for, as a place in the model's tasks; None = the pass does not say. budget_B: budgets of the
    sequences, where they have their own. past_B: real tokens of each sequence that earlier passes
    read, whose keys and values are in the cache; None = none. past: columns that these have in the
    cache, padding included. past_mask: of all columns so far, (B, past + T), where it is known.
    read_out: states (..., D) of the last stack to logits (..., V), where the host is a language
    model. noise: scale of the trained noise in this pass; 0 = none.
    """

    inputs: dict[str, Any]
    seed: int
    budget: float
    training: bool
    mask_of: Callable[[str, int, int], Tensor | None] = lambda stack, b, t: None
    trace: Trace = field(default_factory=Trace)
    memory: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    known_keys_B: Tensor | None = None
    task_B: Tensor | None = None
    budget_B: Tensor | None = None
    past_B: Tensor | None = None
    past: int = 0
    past_mask: Tensor | None = None
    noise: float = 0.0
    read_out: Callable[[Tensor], Tensor] | None = None

    def enter(self, stack: str, hidden_BTD: Tensor) -> None:
        """Note the shape and mask of a stack when its first routed or watched block runs."""
        if stack not in self.trace.shape_BT:
            batch, length = hidden_BTD.shape[:2]
            self.trace.shape_BT[stack] = (batch, length)
            self.trace.mask_BT[stack] = self.mask_of(stack, batch, length)

    def asked_B(self) -> Tensor:
        """The task of each sequence. Raises UserError where the pass does not say."""
        if self.task_B is None:
            raise UserError(
                "a router asks which task is wanted: give the model task_ids, one a sequence, or "
                "set model.turnout.task"
            )
        return self.task_B

    def mask_BT(self, site: Site) -> Tensor | None:
        """Bool mask of real tokens at a site; None when every token is real."""
        return self.trace.mask_BT[site.stack]

    def keys_B(self, batch: int, device: torch.device) -> Tensor:
        """One int64 key a sequence: from its token ids, or its place in the batch without ids."""
        if self.known_keys_B is None:
            ids = self.inputs.get("input_ids")
            if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[0] == batch:
                mask = self.inputs.get("attention_mask")
                fits = isinstance(mask, Tensor) and mask.shape == ids.shape
                self.known_keys_B = sequence_keys(ids, mask if fits else None)
            else:
                self.known_keys_B = torch.arange(batch, device=device)
        return self.known_keys_B + self.seed

    def uniform_B(self, batch: int, device: torch.device, *salts: int) -> Tensor:
        """A uniform draw in [0, 1) a sequence, a function of the seed, the input and the salts."""
        return hash_uniform(self.keys_B(batch, device), *salts)

    def uniform_BT(self, hidden_BTD: Tensor, site: Site, *salts: int) -> Tensor:
        """A uniform draw in [0, 1) a token; positions count from the first real token."""
        return hash_uniform(self.keys_BT(hidden_BTD, site.stack), *salts)

    def keys_BT(self, hidden_BTD: Tensor, stack: str) -> Tensor:
        """One int64 key a token: from its sequence's and its place."""
        keys_B = self.keys_B(hidden_BTD.shape[0], hidden_BTD.device)
        return keys_B[:, None] ^ (self.place_BT(hidden_BTD, stack) * _MIX_1)

    def place_BT(self, hidden_BTD: Tensor, stack: str) -> Tensor:
        """The place of each token in its whole text, int64: 0 is the first real one, whichever
        tokens this pass holds."""
        batch, length = hidden_BTD.shape[:2]
        return self.place_of(batch, length, hidden_BTD.device, stack)

    def place_of(self, batch: int, length: int, device: torch.device, stack: str) -> Tensor:
        """``place_BT`` for states of this shape."""
        mask_BT = self.trace.mask_BT[stack]
        if mask_BT is None:
            place_BT = torch.arange(length, device=device).expand(batch, length)
        else:
            place_BT = mask_BT.long().cumsum(1) - 1
        if self.past_B is None or stack == "encoder":
            return place_BT
        return place_BT + self.past_B[:, None]

    def key_place_BK(self, place_BT: Tensor, stack: str, keys: int) -> Tensor:
        """The place of each key of an attention in its whole text, int64. place_BT: of the queries.

        A cache holds the keys of all columns so far, then room that is masked (static caches), or
        the last ones (sliding windows).
        """
        batch, length = place_BT.shape
        if stack == "encoder" or (self.past == 0 and keys == length):
            return place_BT
        columns = self.past + length
        if self.past_mask is None:
            whole = torch.arange(columns, device=place_BT.device).expand(batch, columns)
        else:
            whole = self.past_mask.long().cumsum(1) - 1
        return whole[:, -keys:] if keys <= columns else F.pad(whole, (0, keys - columns))
