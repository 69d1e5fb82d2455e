"""LoRA checkpoints that PEFT saved, as the units of a routed model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from turnout.errors import UserError
from turnout.files import read_json
from turnout.hosts.attach import blocks_of, find_family
from turnout.hosts.view import BlockView, unit_name

NAMES = ("query", "key", "value", "output", "in", "out")
PREFIX = "base_model.model."
CHANGES_THE_HOST = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin a LoRA, of PEFT
NOT_PLAIN = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "kasa_config",
)


@dataclass(frozen=True, eq=False)
class Lora:
    """One checkpoint. layers: path of a linear layer in the model -> A (r, in) and B (out, r), the
    scale multiplied into B. rest: what else was trained with it (a head), by parameter name. base:
    name or path of the host that it was trained on, as far as the checkpoint says."""

    folder: Path
    base: str
    rank: int
    layers: dict[str, tuple[Tensor, Tensor]]
    rest: dict[str, Tensor]

    def for_host(self, model: PreTrainedModel) -> Lora:
        """The checkpoint as this model names its layers: one that was made for the bare body of a
        host fits the same host with a head."""
        base, own = model.base_model_prefix, dict(model.named_modules())
        if model.base_model is model or any(path in own for path in self.layers):
            return self
        layers = {f"{base}.{path}": pair for path, pair in self.layers.items()}
        return replace(self, layers=layers)


def read_lora(folder: str | Path) -> Lora:
    """Read a folder with adapter_config.json and adapter_model.safetensors. Raises UserError for
    anything but plain LoRA, and for a file that is cut short."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json here, so this is no PEFT checkpoint")
    config: Any = read_json(folder / "adapter_config.json")
    _check(folder, config)
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removesuffix(".lora_A.weight")
        b = tensors.get(f"{path}.lora_B.weight")
        if b is None:
            raise UserError(f"{file}: {name} has no lora_B beside it")
        rank = a.shape[0]
        root = rank**0.5 if config.get("use_rslora") else rank
        layers[path.removeprefix(PREFIX)] = (a.float(), b.float() * config["lora_alpha"] / root)
    if not layers:
        raise UserError(f"{file}: holds no lora_A tensors")
    pair = (".lora_A.weight", ".lora_B.weight")
    rest = {k.removeprefix(PREFIX): v for k, v in tensors.items() if not k.endswith(pair)}
    rank = max(a.shape[0] for a, _ in layers.values())
    return Lora(folder, str(config.get("base_model_name_or_path") or ""), rank, layers, rest)


def _check(folder: Path, config: Any) -> None:
    if not isinstance(config, dict):
        raise UserError(f"{folder}/adapter_config.json: no page of fields, so no PEFT checkpoint")
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{folder}: peft_type is {config.get('peft_type')!r}; only LORA can be routed"
        )
    if not isinstance(config.get("lora_alpha"), int | float):
        raise UserError(f"{folder}/adapter_config.json: lora_alpha is missing, or no number")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_HOST):
        raise UserError(
            f"{folder}: init_lora_weights {start!r} changed the host's own weights too: convert it "
            "with PEFT (save_pretrained(path_initial_model_for_weight_conversion=...)) first"
        )
    for field in NOT_PLAIN:
        if config.get(field):
            raise UserError(f"{folder}: {field} is set, which cannot be routed")
    if config.get("bias", "none") != "none":
        raise UserError(f"{folder}: trained biases (bias: {config['bias']!r}) cannot be routed")


def lora_fields(
    model: PreTrainedModel, loras: Sequence[Lora], head: int | None = None
) -> dict[str, Any]:
    """The fields of a router's config that fit the checkpoints. head: the checkpoint whose head is
    taken. Raises UserError for one that was made for another host, adapts layers outside of the
    blocks, or holds a head where none is taken."""
    if not loras:
        raise UserError("give at least one LoRA checkpoint")
    _check_rest(model, loras, head)
    _warn_of_names(model, loras)
    views = blocks_of(model, find_family(model))
    places = {
        _path(model, view, path): name
        for view in views
        for name in NAMES
        if name not in ("in", "out") or _dense(view)
        for path in view.target(name)
    }
    for lora in loras:
        for path, (a, b) in lora.layers.items():
            if path not in places:
                why = (
                    "which routers do not reach: they serve the linear layers of self-attention "
                    "and of dense feed-forward networks"
                    if path in dict(model.named_modules())
                    else f"which is no layer of this {type(model).__name__}: was it trained for "
                    "another host?"
                )
                raise UserError(f"{lora.folder} adapts {path}, {why}")
            weight: Any = model.get_submodule(path).weight
            if sorted(weight.shape) != sorted((b.shape[0], a.shape[1])):
                raise UserError(
                    f"{lora.folder} was trained for another host: {path} is "
                    f"{tuple(weight.shape)} here, {(b.shape[0], a.shape[1])} there"
                )
    used = {places[path] for lora in loras for path in lora.layers}
    return {
        "site": "adapter",
        "adapters": len(loras),
        "form": "lora",
        "rank": max(lora.rank for lora in loras),
        "scale": 1.0,
        "targets": [name for name in NAMES if name in used],
    }


@torch.no_grad()
def fill(model: PreTrainedModel, loras: Sequence[Lora], head: int | None = None) -> None:
    """Copy checkpoints into the units of a model that was routed with ``lora_fields``."""
    routing: Any = model.turnout
    views = [(v.bank, v) for v in blocks_of(model, find_family(model))]
    for name, view in views:
        mine = {_path(model, view, path) for n in NAMES for path in _paths(view, n)}
        if name not in routing.units and any(mine & set(lora.layers) for lora in loras):
            raise UserError(
                f"the checkpoints adapt block {view.layer} of {view.stack.blocks}, which this "
                "router does not serve: leave out hold_first, hold_last, layers and stack"
            )
    if head is not None:
        for name, value in loras[head].rest.items():
            model.get_parameter(name).copy_(value)
    for name, view in views:
        if name not in routing.units:
            continue
        bank = routing.units[name]
        for target, b_all in bank.b.items():
            b_all.zero_()
            paths = {_path(model, view, path): path for n in NAMES for path in _paths(view, n)}
            full = next(k for k, path in paths.items() if unit_name(path) == target)
            for unit, lora in enumerate(loras):
                if full in lora.layers:
                    a, b = lora.layers[full]
                    bank.a[target][unit].zero_()[: len(a)] = a.to(b_all.device)
                    b_all[unit, :, : len(a)] = b.to(b_all.device)


def _paths(view: BlockView, name: str) -> list[str]:
    if name in ("in", "out") and not _dense(view):
        return []
    return view.target(name)


def _check_rest(model: PreTrainedModel, loras: Sequence[Lora], head: int | None) -> None:
    """A head that was trained with a checkpoint is taken by name, never lost without a word."""
    if head is not None and not 0 <= head < len(loras):
        raise UserError(f"head {head}: there are {len(loras)} checkpoints, counted from 0")
    for lora in loras if head is None else ():
        if lora.rest:
            names = ", ".join(list(lora.rest)[:3])
            raise UserError(
                f"{lora.folder} was trained with {names}{' ...' if len(lora.rest) > 3 else ''}, "
                "which one model can hold once: name the checkpoint to take it from, as head=0"
            )
    if head is None:
        return
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for name, value in loras[head].rest.items():
        if shapes.get(name) != tuple(value.shape):
            raise UserError(
                f"{loras[head].folder}: {name} {tuple(value.shape)} is no parameter of this "
                f"{type(model).__name__} ({shapes.get(name)} here): was it made for another host?"
            )


def _warn_of_names(model: PreTrainedModel, loras: Sequence[Lora]) -> None:
    """Hosts of the same shapes cannot be told apart but by their names, which paths may change."""
    here = Path(str(model.name_or_path or "")).name
    for lora in loras:
        there = Path(lora.base).name
        if here and there and here != there:
            warnings.warn(
                f"{lora.folder} was trained on {lora.base}, and this host is {model.name_or_path}: "
                "the shapes agree, but in another host's weights it would do harm",
                stacklevel=4,
            )


def _dense(view: BlockView) -> bool:
    """Has the block a feed-forward network of its own, and no experts in its place."""
    return view.stack.neurons is not None and view.own_experts is None


def _path(model: PreTrainedModel, view: BlockView, path: str) -> str:
    """The full path of a layer of a block, as PEFT names it."""
    base = model.base_model_prefix if model.base_model is not model else ""
    return ".".join(part for part in (base, view.stack.blocks, str(view.layer), path) if part)
