"""Load routed models: the host by Transformers, the routers by us, nothing by pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from turnout.errors import UserError
from turnout.files import read_json
from turnout.install import install

SPEC_VERSION = 1
PREFIX = "turnout."


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No load reports and bars: our tensors look unexpected to the host's own loader."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def load_host(folder: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A saved model without its routers, by the class named in its config.

    Raises UserError for a folder that isn't one, and for a weights file that is cut short.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder}: no config.json here, so this is not a saved model")
    names = read_json(config_file).get("architectures") or [None]
    cls = getattr(transformers, str(names[0]), None)
    if cls is None:
        raise UserError(f"{config_file}: architectures names no Transformers class: {names[0]!r}")
    _check_weights(folder)
    with quiet_loading():
        config = AutoConfig.from_pretrained(folder)
        return cls.from_pretrained(folder, config=config, **{"dtype": torch.float32, **kwargs})


def load(run: str | Path, **kwargs: Any) -> PreTrainedModel:
    """A routed model, ready to use, from a run folder or from ``save_pretrained``.

    Needs no training data. Keyword arguments go to ``from_pretrained``. Raises UserError for a
    folder without routers, of another version, or with missing, extra or truncated tensors.
    """
    folder = Path(run)
    if (folder / "routed" / "config.json").is_file():
        folder = folder / "routed"
    model = load_host(folder, **kwargs)
    spec = getattr(model.config, "turnout", None)
    if not isinstance(spec, dict):
        raise UserError(f"{folder}/config.json has no 'turnout' entry: this model has no routers")
    if spec.get("version") != SPEC_VERSION:
        raise UserError(
            f"{folder}/config.json: turnout version {spec.get('version')!r}; this library reads "
            f"{SPEC_VERSION}. Load it with the turnout release that wrote it"
        )
    install(model, spec["routers"])
    _load_routers(model, folder)
    routing: Any = model.turnout
    levels, budget = spec.get("levels", {}), spec.get("budget", 1.0)
    for name, router in routing.routers.items():
        router.levels = [(share, level) for share, level in levels.get(name, [])]
    routing.budget = budget
    model.config.turnout = spec
    return model.eval()


def note_dial(model: PreTrainedModel) -> None:
    """Write the calibrated dial and the current budget into the config, so saving keeps them."""
    routing: Any = model.turnout
    levels = {name: [list(pair) for pair in r.levels] for name, r in routing.routers.items()}
    model.config.turnout = {**model.config.turnout, "levels": levels, "budget": routing.budget}


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Restore all tensors of a model from a checkpoint, exactly, key conversions included.

    Trainer's own reader skips the conversions that some hosts need (ViT, Mixtral) and only warns.
    """
    host = load_host(folder)
    state = host.state_dict()
    if hasattr(model, "turnout"):
        state.update({k: v for k, v in _router_tensors(Path(folder)).items()})
    missing = set(model.state_dict()) - set(state)
    extra = set(state) - set(model.state_dict())
    if missing or extra:
        raise UserError(
            f"{folder}: tensors do not fit; missing {sorted(missing)[:3]}, extra {sorted(extra)[:3]}"
        )
    model.load_state_dict(state)


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no .safetensors file here; the checkpoint is incomplete")
    return files


def _check_weights(folder: Path) -> None:
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                handle.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: cannot be read ({error}); it is cut short or damaged. Copy it again or "
                "train again"
            ) from None


def _router_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            found.update({k: handle.get_tensor(k) for k in handle.keys() if k.startswith(PREFIX)})  # noqa: SIM118
    return found


def _load_routers(model: PreTrainedModel, folder: Path) -> None:
    tensors = {name[len(PREFIX) :]: value for name, value in _router_tensors(folder).items()}
    routing: Any = model.turnout
    wanted = set(routing.state_dict())
    if wanted != set(tensors):
        raise UserError(
            f"{folder}: router tensors do not fit the config; missing "
            f"{sorted(wanted - set(tensors))[:3]}, extra {sorted(set(tensors) - wanted)[:3]}"
        )
    try:
        routing.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{folder}: {error}") from None
