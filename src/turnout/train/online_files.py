"""The folder in which an online policy's state lies: tensors as safetensors, counts as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from turnout.errors import UserError
from turnout.files import atomic_dir, read_json, write_json

TENSORS, FACTS = "online.safetensors", "online.json"
States = dict[str, dict[str, Tensor]]
Adam = dict[int, dict[str, Tensor]]


def write_state(
    folder: str | Path, states: Mapping[str, Mapping[str, Tensor]], adam: Adam, facts: Any
) -> None:
    """Write a policy's weights as of several moments, its optimizer's state and some counts; the
    folder is there whole, or as it was."""
    tensors = {
        f"{moment}/{name}": value.clone()
        for moment, state in states.items()
        for name, value in state.items()
    }
    for place, state in adam.items():
        tensors |= {f"adam/{place}/{name}": value.clone() for name, value in state.items()}
    with atomic_dir(folder) as temp:
        save_file(tensors, temp / TENSORS)
        write_json(temp / FACTS, facts)


def read_state(
    folder: str | Path, like: Mapping[str, Tensor], counts: Mapping[str, type]
) -> tuple[States, Adam, dict[str, Any]]:
    """What ``write_state`` wrote. like: the policy's own weights, whose names and shapes those of
    every moment must have. counts: names and types of the counts; ``best`` is a number or None
    beside them. Raises UserError for another policy's folder, or one that cannot be read."""
    folder = Path(folder)
    read: Any = read_json(folder / FACTS)
    try:
        tensors = load_file(folder / TENSORS)
        facts = {name: kind(read[name]) for name, kind in counts.items()}
        facts["best"] = None if read["best"] is None else float(read["best"])
        states: States = {"now": {}, "best": {}, "checked": {}}
        adam: Adam = {}
        for name, value in tensors.items():
            moment, _, rest = name.partition("/")
            if moment == "adam":
                place, _, rest = rest.partition("/")
                adam.setdefault(int(place), {})[rest] = value
            else:
                states[moment][rest] = value
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as an online policy: {error}") from None
    own = {name: value.shape for name, value in like.items()}
    for state in states.values():
        if {name: value.shape for name, value in state.items()} != own:
            raise UserError(f"{folder} holds the state of another policy")
    return states, adam, facts
