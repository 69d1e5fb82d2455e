"""Blocks on shorter sequences: tokens that are removed from attention need no place in it.

Where a layer's skipped tokens are hidden (``visible: false``), the block runs on what is left of
each sequence, padded to the longest: attention works on shorter rows, and tokens are moved twice a
block instead of twice a leaf. Hosts whose blocks are told more of the tokens than a mask and
rotations are packed leaf by leaf instead, and so are batches that would be mostly padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turnout.execute.rows import gather

WASTE = 1.125  # places for one token that runs, at most
_MASK, _ROTATIONS = "attention_mask", "position_embeddings"


@dataclass(frozen=True, eq=False)
class Short:
    """What is left of each sequence. place_BS: its tokens in order; valid_BS: False = padding."""

    place_BS: Tensor
    valid_BS: Tensor

    @property
    def full(self) -> bool:
        """Is there no padding."""
        return bool(self.valid_BS.all())

    def flat_BS(self, length: int) -> Tensor:
        """Its tokens among all tokens of the batch, one sequence after the other."""
        start_B = torch.arange(len(self.place_BS), device=self.place_BS.device) * length
        return start_B[:, None] + self.place_BS

    def take(self, x_BTD: Tensor) -> Tensor:
        """Its rows of a state, (B, S, D)."""
        batch, length, width = x_BTD.shape
        return gather(x_BTD, self.flat_BS(length).flatten()).view(batch, -1, width)


def short_of(active_BT: Tensor, waste: float = WASTE) -> Short | None:
    """The tokens that run; None where shorter sequences would not pay. waste: places for one token
    that runs, at most."""
    batch, length = active_BT.shape
    counts_B = active_BT.sum(1)
    longest, total = int(counts_B.max()), int(counts_B.sum())
    if not 0 < longest < length or batch * longest > waste * total:
        return None
    place_BS = active_BT.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
    valid_BS = torch.arange(longest, device=active_BT.device) < counts_B[:, None]
    return Short(place_BS, valid_BS)


def shorten(
    short: Short, x_BTD: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]] | None:
    """State and arguments of a block for what is left; None where an argument is unknown."""
    by_name = _MASK in kwargs
    mask = kwargs[_MASK] if by_name else (args[0] if args else None)
    if not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)):
        return None
    others = [*(args if by_name else args[1:])]
    others += [value for name, value in kwargs.items() if name not in (_MASK, _ROTATIONS)]
    if not all(is_plain(value) for value in others):
        return None
    changed = dict(kwargs)
    if kwargs.get(_ROTATIONS) is not None:
        changed[_ROTATIONS] = tuple(places(value, short) for value in kwargs[_ROTATIONS])
    mask = _mask(mask, short, x_BTD)
    if by_name:
        changed[_MASK] = mask
    else:
        args = (mask, *args[1:])
    return short.take(x_BTD), args, changed


def is_plain(value: Any) -> bool:
    """Does an argument say nothing of single tokens."""
    scalar = isinstance(value, Tensor) and value.ndim == 0
    return scalar or value is None or isinstance(value, bool | int | float | str)


def lengthen(short: Short, out_BSD: Tensor, x_BTD: Tensor) -> Tensor:
    """The state with the tokens that ran replaced."""
    index, rows = short.flat_BS(x_BTD.shape[1]), out_BSD.to(x_BTD.dtype)
    if short.full:
        index, rows = index.flatten(), rows.flatten(0, 1)
    else:
        index, rows = index[short.valid_BS], rows[short.valid_BS]
    return x_BTD.flatten(0, 1).index_copy(0, index, rows).view(x_BTD.shape)


def places(value: Tensor, short: Short) -> Tensor:
    """Rotations of the tokens that are left, (B, S, D) of (1|B, T, D)."""
    value = value.expand(len(short.place_BS), *value.shape[1:])
    return value.gather(1, short.place_BS[:, :, None].expand(-1, -1, value.shape[2]))


def _mask(mask: Tensor | None, short: Short, x_BTD: Tensor) -> Tensor | None:
    """The mask (1|B, 1|H, T, T) among the tokens that are left, without the padding."""
    seen = short.valid_BS[:, None, None, :]
    if mask is None:
        if short.full:
            return None
        batch, places = short.place_BS.shape
        hidden = ~seen.expand(batch, 1, places, places)
        return x_BTD.new_zeros(hidden.shape).masked_fill(hidden, torch.finfo(x_BTD.dtype).min)
    batch, places = short.place_BS.shape
    mask = mask.expand(batch, *mask.shape[1:])
    if mask.shape[2] > 1:
        at = short.place_BS[:, None, :, None]
        mask = mask.gather(2, at.expand(-1, mask.shape[1], -1, mask.shape[3]))
    at = short.place_BS[:, None, None, :]
    mask = mask.gather(3, at.expand(-1, mask.shape[1], mask.shape[2], -1))
    if short.full:
        return mask
    asks = short.valid_BS[
        :, None, :, None
    ]  # padding sees something, lest its softmax be of nothing
    if mask.dtype == torch.bool:
        return (mask | ~asks) & seen
    return mask.masked_fill(~asks, 0.0).masked_fill(~seen, torch.finfo(mask.dtype).min)
