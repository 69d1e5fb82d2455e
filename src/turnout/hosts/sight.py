"""What a language model's tokens see, tried out: only those before them, and, where several texts
stand in one row, only those of their own.

Transformers finds the texts of a packed row by positions that begin anew, where it is given neither
a mask nor a cache, and lets each token see its own text alone. Most decoders do; those that carry a
state from token to token, or count positions themselves, do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from turnout.hosts.read_out import words_of

LENGTHS = (5, 3, 6)


@torch.inference_mode()
def looks_back(model: PreTrainedModel) -> bool:
    """Does no token see a later one. Families of encoders have a head for causal language modelling
    too, which they look both ways with unless their config says otherwise."""
    ids = _texts(model)[-1]
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % words_of(model)
    was = model.training
    model.eval()
    try:
        first, second = (_logits(model, each)[:, :-1] for each in (ids, other))
    finally:
        model.train(was)
    return _alike(first, second)


@torch.inference_mode()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Are texts of a packed row answered as each alone: three short ones are tried out."""
    texts = _texts(model)
    places = torch.cat([torch.arange(size) for size in LENGTHS])[None]
    was = model.training
    model.eval()
    try:
        alone = [_logits(model, ids, torch.arange(ids.shape[1])[None]) for ids in texts]
        packed = _logits(model, torch.cat(texts, 1), places)
    except TypeError:  # knows no position_ids
        return False
    finally:
        model.train(was)
    return _alike(packed, torch.cat(alone, 1))


def _texts(model: PreTrainedModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(words_of(model), (1, n), generator=generator) for n in LENGTHS]


def _alike(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max())


def _logits(model: Any, ids_1T: Tensor, place_1T: Tensor | None = None) -> Tensor:
    given = {} if place_1T is None else {"position_ids": place_1T.to(model.device)}
    outputs = model(input_ids=ids_1T.to(model.device), use_cache=False, **given)
    return outputs["logits"].float()
