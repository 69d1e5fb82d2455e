"""Blocks of a decoder on the tokens that run, with the keys and values of all.

Skipped tokens of a decoder have keys and values too (of their unchanged state), so a block cannot
simply be given shorter sequences. Where a text is read in one pass it is run twice instead: up to
its keys and values, of all tokens; then on what is left of each sequence, which asks those. Norms,
rotations, queries and attention then cost what runs, and no more. Hosts that do not attend by
PyTorch's own function, or whose blocks are told more of the tokens than a mask, their places and
rotations, are packed leaf by leaf instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turnout.execute.handle import BlockHandle, cache_of
from turnout.execute.shorten import Short, is_plain, lengthen, places, short_of
from turnout.execute.writing import Catch, Filled, Seen, fill

WASTE = 1.25  # places for one token that runs, at most: less is lost by them than by packing leaves
_MASK, _CACHE, _ROTATIONS, _IDS = (
    "attention_mask",
    "past_key_values",
    "position_embeddings",
    "position_ids",
)


@dataclass(frozen=True, eq=False)
class Asking:
    """What a block is called with for the tokens that run. short: those of each sequence."""

    short: Short
    x_BSD: Tensor
    kwargs: dict[str, Any]


def asking_of(
    handle: BlockHandle,
    x_BTD: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    active_BT: Tensor,
) -> Asking | None:
    """The call for what is left of each sequence; None where it must be packed by leaves."""
    if args or _CACHE not in kwargs or _MASK not in kwargs or not _causal(handle):
        return None
    mask, rotations, ids = kwargs[_MASK], kwargs.get(_ROTATIONS), kwargs.get(_IDS)
    if mask is not None and not (mask.ndim == 4 and mask.shape[1] == 1):
        return None
    known = (_CACHE, _MASK, _ROTATIONS, _IDS)
    if not all(is_plain(value) for name, value in kwargs.items() if name not in known):
        return None
    short = short_of(active_BT, WASTE)
    if short is None:
        return None
    changed = {**kwargs, _MASK: _mask(mask, short, x_BTD.shape[1])}
    if rotations is not None:
        changed[_ROTATIONS] = tuple(places(value, short) for value in rotations)
    if ids is not None:
        changed[_IDS] = ids.expand(len(x_BTD), -1).gather(1, short.place_BS)
    return Asking(short, short.take(x_BTD), changed)


def run_asking(
    handle: BlockHandle,
    host: Callable[..., Any],
    asking: Asking,
    x_BTD: Tensor,
    kwargs: dict[str, Any],
) -> Any:
    """Run the host's block on the tokens that run; None where it keeps no keys and values. kwargs:
    those of the whole call."""
    if kwargs[_CACHE] is None:
        kwargs = {**kwargs, _CACHE: Catch()}
    seen = write(handle, host, x_BTD, (), kwargs)
    if seen is None:
        return None
    handle.scopes["attention"].known = True
    handle.stream.short = asking.short
    out = host(asking.x_BSD, **{**asking.kwargs, _CACHE: seen})
    hidden, *rest = out if isinstance(out, tuple) else (out,)
    hidden = lengthen(asking.short, hidden, x_BTD)
    return (hidden, *rest) if rest else hidden


def write(
    handle: BlockHandle,
    host: Callable[..., Any],
    x_BTD: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Seen | None:
    """Keys and values of all tokens of a block, in its cache where it has one; None where the block
    has kept none and came to its end."""
    scope = handle.scopes["attention"]
    scope.check()
    scope.index_N = torch.zeros(0, dtype=torch.long, device=x_BTD.device)
    scope.like_BTD = handle.stream.state_BTD = x_BTD
    try:
        cache = cache_of(args, kwargs)
        if cache is not None:
            return fill(cache, lambda: host(x_BTD, *args, **kwargs))
        host(x_BTD, *args, **kwargs)
    except Filled as filled:
        return filled.seen
    finally:
        handle.stream.state_BTD = None
        scope.clear()
    return None


def _causal(handle: BlockHandle) -> bool:
    """Does a block attend to the left, by PyTorch's function."""
    module: Any = handle.attends
    config = getattr(module, "config", None)
    by = getattr(config, "_attn_implementation", None)
    return by == "sdpa" and getattr(module, "is_causal", False) is True


def _mask(mask: Tensor | None, short: Short, length: int) -> Tensor:
    """Rows of the mask (1|B, 1, T, K) of the tokens that are left, (B, 1, S, K). None: a text that
    is read from its start without padding, so that each token sees those up to its own place."""
    place_BS = short.place_BS
    if mask is None:
        place_T = torch.arange(length, device=place_BS.device)
        return (place_T <= place_BS[:, :, None])[:, None]
    row_B = torch.arange(len(place_BS), device=place_BS.device)
    mask = mask.expand(len(place_BS), *mask.shape[1:])
    return mask[row_B[:, None], 0, place_BS][:, None]
