"""Decoders on the tokens that run: they ask the keys of all, and cost what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts_table import BY_NAME, VOCAB
from torch import Tensor
from transformers import DynamicCache, StaticCache

import turnout
from turnout.execute.scope import reference_execution

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi", "mixtral", "olmoe")
SKIP = {"kind": "random-skip", "granularity": "token"}
LENGTH = 48


def routed(name: str, attention: str = "sdpa") -> Any:
    """A tiny host in double precision that skips at random, and always alike."""
    model: Any = turnout.install(BY_NAME[name].build(attention).double(), SKIP)
    model.turnout.seed, model.turnout.budget = 3, 0.5
    return model


def texts() -> tuple[Tensor, Tensor]:
    """Three texts, one of them padded on the left, and their mask."""
    ids = torch.randint(3, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    return ids, mask


def widths(model: Any, **inputs: Any) -> tuple[Tensor, list[int]]:
    """The logits of a pass, and how many columns the state that each block's first norm is given
    last has."""
    found: dict[int, int] = {}

    def note(layer: int) -> Any:
        return lambda module, args: found.__setitem__(layer, args[0].shape[1])

    blocks = model.base_model.layers
    hooks = [b.input_layernorm.register_forward_pre_hook(note(n)) for n, b in enumerate(blocks)]
    with torch.no_grad():
        logits = model(**inputs)["logits"]
    for hook in hooks:
        hook.remove()
    return logits, list(found.values())


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_as_the_definition_says_on_fewer_columns(name: str, padded: bool, cached: bool) -> None:
    model, (ids, mask) = routed(name), texts()
    inputs = {"input_ids": ids, "use_cache": cached} | ({"attention_mask": mask} if padded else {})
    found, columns = widths(model, **inputs)
    with torch.no_grad(), reference_execution():
        wanted = model(**inputs)["logits"]
    real = mask.bool() if padded else torch.ones_like(mask).bool()
    torch.testing.assert_close(found[real], wanted[real])
    assert min(columns) < 0.8 * LENGTH


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_text_that_is_gone_on_with(name: str, static: bool) -> None:
    """A second pass of many tokens, with keys and values of the first in the cache."""
    model, (ids, mask) = routed(name), texts()
    place = (mask.cumsum(1) - 1).clamp_min(0)[:, 20:]

    def second() -> tuple[Tensor, list[int]]:
        cache: Any = DynamicCache(config=model.config)
        if static:
            cache = StaticCache(config=model.config, max_cache_len=LENGTH)
        with torch.no_grad():
            model(input_ids=ids[:, :20], attention_mask=mask[:, :20], past_key_values=cache)
        more = {"attention_mask": mask, "position_ids": place, "past_key_values": cache}
        return widths(model, input_ids=ids[:, 20:], **more)

    found, columns = second()
    with reference_execution():
        wanted, _ = second()
    torch.testing.assert_close(found, wanted)
    assert min(columns) < 0.8 * (LENGTH - 20)


def test_gradients_are_those_of_the_definition() -> None:
    found = []
    for reference in (False, True):
        model, (ids, _) = routed("llama"), texts()
        if reference:
            with reference_execution():
                logits = model(input_ids=ids)["logits"]
        else:
            logits = model(input_ids=ids)["logits"]
        logits.pow(2).mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    packed, wanted = found
    assert packed.keys() == wanted.keys()
    for key, grad in wanted.items():
        torch.testing.assert_close(packed[key], grad)


@pytest.mark.parametrize("why", ["eager", "noisy", "uneven"])
def test_what_cannot_ask_is_packed_by_leaves(why: str) -> None:
    ids, mask = texts()
    model: Any = routed("llama", "eager" if why == "eager" else "sdpa")
    if why == "noisy":
        model = turnout.install(BY_NAME["llama"].build().double(), SKIP, noise=[{"kind": "ffn"}])
        model.turnout.seed, model.turnout.budget = 3, 0.5
    if why == "uneven":  # one long text beside two that are nearly all padding
        mask[1:, : LENGTH - 6] = 0
    found, columns = widths(model, input_ids=ids, attention_mask=mask, use_cache=False)
    with torch.no_grad(), reference_execution():
        wanted = model(input_ids=ids, attention_mask=mask, use_cache=False)["logits"]
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()])
    assert min(columns) == LENGTH
