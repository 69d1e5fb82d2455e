"""Plain cutting: a host with some of its blocks only. The baseline that routing has to beat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.hosts.attach import blocks_of, find_family

# The name of a cut in a recipe.
Cut = Annotated[str, Field(pattern=r"^((first|last)-[1-9][0-9]*|every-other)$")]


def static_layers(name: str, depth: int) -> list[int]:
    """Places of the blocks that a cut keeps: ``first-3``, ``last-2``, ``every-other`` (0, 2, 4).

    Raises UserError for another name, and for a cut that keeps nothing or everything.
    """
    places = list(range(depth))
    match = re.fullmatch(r"(first|last)-(\d+)", name)
    if not match and name != "every-other":
        raise UserError(
            f"static model {name!r} is not known; allowed: first-<number>, last-<number>, "
            "every-other, for example first-3"
        )
    if depth < 2:
        raise UserError(f"static model {name!r}: the host has 1 layer, so nothing can be cut")
    if not match:
        return places[::2]
    end, count = match[1], int(match[2])
    if not 0 < count < depth:
        raise UserError(
            f"static model {name!r} of a host with {depth} layers: a cut keeps at least 1 layer "
            f"and removes at least 1; allowed: {end}-1 to {end}-{depth - 1}"
        )
    return places[:count] if end == "first" else places[-count:]


def cuts_of(model: PreTrainedModel, names: Sequence[str] | None) -> list[str]:
    """The cuts to make of a host: those that are named, or (None) a half, a third and every other
    of its layers, as far as it can be cut. Raises UserError for a name that it does not allow."""
    views = blocks_of(model, find_family(model))
    depth = views[0].depth
    if names is None:
        if len(views) != depth:
            return []
        names = [f"first-{depth // 2}", f"first-{depth // 3}", "every-other"]
        names = [name for name in names if name != "first-0" and depth > 1]
    elif names:
        _check_stacks(model, len(views), depth)
    for name in names:
        static_layers(name, depth)
    return list(dict.fromkeys(names))


def cut_host(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """A new host that has copies of the layers of a named cut. Raises UserError like
    ``static_layers`` and ``keep_layers``."""
    return keep_layers(model, static_layers(name, blocks_of(model, find_family(model))[0].depth))


@torch.no_grad()
def keep_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A new host of the same class that has copies of only these blocks, in the order of depth.

    It is built from a shortened config, so it saves and loads like any model of its class. The
    given model is not changed. Raises UserError for a routed model, for a host with several
    stacks, for places that are not there, and where a block cannot stand at its new place.
    """
    if hasattr(model, "turnout"):
        raise UserError("a routed model cannot be cut; call turnout.uninstall(model) first")
    views = blocks_of(model, find_family(model))
    depth, path = views[0].depth, views[0].stack.blocks
    _check_stacks(model, len(views), depth)
    kept = sorted(set(keep))
    if not kept or kept[0] < 0 or kept[-1] >= depth:
        raise UserError(f"cannot keep blocks {list(keep)} of {depth}: allowed are 0 to {depth - 1}")
    config = deepcopy(model.config)
    for field, value in model.config.to_dict().items():
        if field.endswith("layer_types") and isinstance(value, list) and len(value) == depth:
            setattr(config, field, [value[place] for place in kept])
    config.num_hidden_layers = len(kept)
    with torch.random.fork_rng():  # the start weights are replaced: nobody's draws should move
        cut: PreTrainedModel = type(model)(config)
        cut.to(model.device, model.dtype)  # type: ignore[call-arg]
    base = model.base_model_prefix + "." if model.base_model is not model else ""
    _copy(cut, _renumbered(model.state_dict(), f"{base}{path}.", kept))
    return cut.train(model.training)


def _renumbered(state: dict[str, Tensor], prefix: str, kept: list[int]) -> dict[str, Tensor]:
    """The tensors of the kept blocks under their new numbers, and all that belong to no block."""
    new = {str(old): str(place) for place, old in enumerate(kept)}
    found = {}
    for name, value in state.items():
        if not name.startswith(prefix):
            found[name] = value
            continue
        number, rest = name[len(prefix) :].split(".", 1)
        if number in new:
            found[f"{prefix}{new[number]}.{rest}"] = value
    return found


def _copy(cut: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Fill in all tensors; a block that is made otherwise at its new place is refused."""
    own = cut.state_dict()
    wrong = sorted(set(own) ^ set(state)) or sorted(
        name for name, value in own.items() if value.shape != state[name].shape
    )
    if wrong:
        raise UserError(
            f"{type(cut).__name__} cannot be cut to these blocks: a block differs at its new "
            f"place, or a tensor depends on their number ({', '.join(wrong[:3])}). Keep block 0, "
            "or choose another cut"
        )
    cut.load_state_dict(state)


def _check_stacks(model: PreTrainedModel, blocks: int, depth: int) -> None:
    if blocks != depth:
        raise UserError(
            f"{type(model).__name__} has several stacks of blocks; cutting serves hosts with one"
        )
