"""Writing with a routed model: what one call of ``generate`` keeps from step to step.

A random router, or noise, must take one path through a whole text, whether the host keeps keys and
values or reads the text anew in every step, and whether a prompt is alone or in a batch. So a call
draws one seed and one key a prompt, and every pass inside has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from turnout.errors import UserError
from turnout.flow import sequence_keys


@dataclass(frozen=True, eq=False)
class Writing:
    """One call of ``generate``. key_P: of each prompt. mask_PT: which tokens of a prompt are real,
    where a decoder goes on from it; None = all. apart: several answers to a prompt take paths of
    their own (sampled answers do, beams do not).
    """

    seed: int
    key_P: Tensor | None
    mask_PT: Tensor | None
    apart: bool

    def keys_B(self, batch: int) -> Tensor | None:
        """Of the rows of a pass: each prompt stands in as many as it has answers or beams."""
        if self.key_P is None or batch % len(self.key_P):
            return None
        copies = batch // len(self.key_P)
        keys_B = self.key_P.repeat_interleave(copies)
        if not self.apart:
            return keys_B
        return keys_B + torch.arange(copies, device=keys_B.device).repeat(len(self.key_P))

    def mask_BT(self, inputs: dict[str, Any]) -> Tensor | None:
        """The mask of all tokens so far, (B, earlier + T). For a static cache, hosts are given one
        of every pair instead, from which padding cannot be told."""
        ids = inputs.get("input_ids")
        if self.mask_PT is None or not isinstance(ids, Tensor) or len(ids) % len(self.mask_PT):
            return None
        past = read_past(inputs)
        mask = self.mask_PT.repeat_interleave(len(ids) // len(self.mask_PT), 0)
        more = past + ids.shape[1] - mask.shape[1]
        if more <= 0:
            return mask[:, : past + ids.shape[1]]
        return torch.cat([mask, mask.new_ones(len(mask), more)], 1)


def writing_of(
    model: PreTrainedModel, seed: int | None, budget_P: Tensor | None, call: inspect.BoundArguments
) -> Writing:
    """What a call of ``generate`` keeps. Raises UserError for prompts that cannot be written on,
    and for a model in training."""
    if model.training:
        raise UserError("the model is in training mode, where routes are drawn: call model.eval()")
    given: dict[str, Any] = {**call.arguments, **call.arguments.get("kwargs", {})}
    ids: Any = given.get("inputs")
    ids = given.get("input_ids") if ids is None else ids
    mask: Any = given.get("attention_mask")
    is_text = isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()
    fits = isinstance(mask, Tensor) and is_text and mask.shape == ids.shape
    if is_text:
        check_prompts(model, ids, mask if fits else None)
        rows = len(ids)
        check_cache(model, given.get("past_key_values"), rows)
        if budget_P is not None and len(budget_P) != rows:
            raise UserError(f"{len(budget_P)} budgets are set for {rows} prompts")
    settings = given.get("generation_config") or model.generation_config
    beams = given.get("num_beams") or getattr(settings, "num_beams", None) or 1
    return Writing(
        int(torch.randint(0, 2**62, ()).item()) if seed is None else seed,
        sequence_keys(ids, mask if fits else None) if is_text else None,
        mask if fits and not model.config.is_encoder_decoder else None,
        apart=beams == 1,
    )


def check_prompts(model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor | None) -> None:
    """Raise UserError for an empty prompt, and for one that fills the host's context."""
    lengths_B = torch.full((len(ids_BT),), ids_BT.shape[1]) if mask_BT is None else mask_BT.sum(1)
    if not len(lengths_B) or int(lengths_B.min()) == 0:
        place = 0 if not len(lengths_B) else int(lengths_B.argmin())
        raise UserError(f"prompt {place} is empty: give at least one token to go on from")
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = most if model.config.is_encoder_decoder else most and most - 1
    if room and int(lengths_B.max()) > room:
        raise UserError(
            f"prompt {int(lengths_B.argmax())} has {int(lengths_B.max()):,} tokens, but "
            f"{type(model).__name__} reads {most:,} (max_position_embeddings), what it writes "
            "included: cut the prompt"
        )


def check_cache(model: PreTrainedModel, cache: Any, rows: int) -> None:
    """Raise UserError for a cache that another model, or another batch, has filled."""
    inner = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if not isinstance(inner, Cache):
        return
    config: Any = model.config.get_text_config(decoder=True)
    layers = config.num_hidden_layers
    filled: list[Any] = [each for each in inner.layers if getattr(each, "keys", None) is not None]
    if filled and len(inner.layers) != layers:
        raise UserError(
            f"past_key_values has {len(inner.layers)} layers, the model {layers}: it is the cache "
            "of another model"
        )
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in filled:
        batch, *found = layer.keys.shape[0], layer.keys.shape[1], layer.keys.shape[3]
        if layer.keys.numel() and (found != [heads, width] or batch % rows):
            raise UserError(
                f"past_key_values holds {batch} rows of {found[0]} heads of width {found[1]}; the "
                f"model has {heads} of {width}, and {rows} prompts were given: it is the cache of "
                "another model or batch"
            )


def read_past(inputs: dict[str, Any]) -> int:
    """Columns of earlier passes in the cache that a pass is given, padding included."""
    cache = inputs.get("past_key_values")
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0


def read_past_mask(inputs: dict[str, Any], mask: str, past: int) -> Tensor | None:
    """The (B, past + T) mask of all columns so far; None where the inputs hold none.

    mask: name of the input with the mask of the stack that keeps the cache.
    """
    mask_BT = inputs.get(mask)
    fits = isinstance(mask_BT, Tensor) and mask_BT.ndim == 2 and mask_BT.shape[1] > past
    return mask_BT if fits else None


@dataclass(frozen=True, eq=False)
class Seen:
    """Keys and values that a block is given in place of a cache: those of all tokens."""

    key_BGKD: Tensor
    value_BGKD: Tensor

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a cache would say, whatever the block has computed itself."""
        return self.key_BGKD, self.value_BGKD


class Filled(Exception):
    """A block has its keys and values."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen


class Catch:
    """Stands in for a cache where there is none: keys and values of this pass are all there are."""

    def update(self, key_BGTD: Tensor, value_BGTD: Tensor, *_: Any, **__: Any) -> Any:
        """Stop the block here."""
        raise Filled(Seen(key_BGTD, value_BGTD))


def fill(cache: Cache, run: Callable[[], Any]) -> Seen | None:
    """Run a host's block up to the point where its keys and values are in the cache; None where it
    came to its end, so that it wrote none."""
    inner: Any = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    update = inner.update

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Filled(Seen(*update(*args, **kwargs)))

    inner.update = stop  # of this instance: hosts ask for its class
    try:
        run()
    except Filled as filled:
        return filled.seen
    finally:
        del inner.update
    return None


def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """``generate`` of Transformers on a routed model, unchanged but for what ``Writing`` keeps and
    checks. Raises UserError for routers that cannot decide token by token."""
    host = type(model).generate
    call = inspect.signature(host).bind(model, *args, **kwargs)
    routing = model.turnout
    routing.check_writes()
    with routing.writes(writing_of(model, routing.seed, routing.budget_B, call)):
        return host(model, *args, **kwargs)


def reads_out(model: nn.Module) -> bool:
    """Does a host write text."""
    return isinstance(model, PreTrainedModel) and model.can_generate()
